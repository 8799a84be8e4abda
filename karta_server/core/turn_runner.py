"""Running turns: which ones run here, how many, and what comes next."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from karta import v1
from karta_server.core import ledger
from karta_server.core.active_turn import ActiveTurn, Surroundings
from karta_server.core.session_record import read_session
from karta_server.error_codes import to_error
from karta_server.errors import KartaError
from karta_server.storage.contract import Commit, SessionKey, Tx

log = logging.getLogger(__name__)

_CLAIM_RETRY_SECONDS = 1.0
# What a stopped turn may take to record its end, beyond the time that its harness has to stop.
_END_SECONDS = 10.0

T = TypeVar("T")


class TurnRunner:
    """The turns that this instance runs. `start` it once; `drain` it before it goes."""

    def __init__(self, surroundings: Surroundings, owner: str, max_running: int) -> None:
        self._around = surroundings
        self.owner = owner
        self._free = max_running
        self._active: dict[SessionKey, ActiveTurn] = {}
        self._tasks: dict[SessionKey, asyncio.Task[None]] = {}
        self._wanted = asyncio.Event()
        self._work: set[asyncio.Task[Any]] = set()  # What must not end with the call that began it.
        self._backlog = True  # Whether turns may wait that could run if there were a place.
        self._claimer: asyncio.Task[None] | None = None
        self.stopping = False

    def start(self) -> None:
        """Begin to claim queued turns, those of an earlier process first."""
        self._wanted.set()
        self._unsubscribe = self._around.store.subscribe(self._committed)
        self._claimer = asyncio.create_task(self._claim_forever(), name="claim turns")

    def require_open(self) -> None:
        """Refuse new work while the server stops."""
        if self.stopping:
            raise KartaError(
                v1.ERROR_REASON_SERVER_STOPPING,
                "The server is stopping; send the request to the next one, with the same request_id.",
            )

    async def write(self, unit: Callable[[Tx, bool], tuple[T, ledger.Started | None]], key: SessionKey) -> T:
        """Write a unit that may acquire a turn if its second argument says so; run what it acquired.

        The turn runs although the caller may be cancelled meanwhile: what is
        committed has its effect.
        """
        return await asyncio.shield(self._begin(self._write(unit, key)))

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # Looked at, because nobody may be left to.

    async def _write(self, unit: Callable[[Tx, bool], tuple[T, ledger.Started | None]], key: SessionKey) -> T:
        reserved = self._free > 0 and not self.stopping
        self._free -= reserved
        started: ledger.Started | None = None
        try:
            result, started = await self._around.store.write(lambda tx: unit(tx, reserved), key)
        finally:
            if started is not None:
                self._launch(started)
            elif reserved:
                self._release()
            else:
                self._backlog = True
                self._wake_claimer()
        return result

    def _release(self) -> None:
        self._free += 1
        self._wake_claimer()

    def _wake_claimer(self) -> None:
        if self._backlog and self._free > 0:
            self._wanted.set()

    def _committed(self, commits: Sequence[Commit]) -> None:
        """Hand answers to the turns that wait for them, however they came."""
        for commit in commits:
            for request in commit.inputs:
                active = self.active(commit.session, request.turn_id)
                if active is not None:
                    self._hear(active, request)

    def _hear(self, active: ActiveTurn, request: v1.InputRequest) -> None:
        """Tell a turn what became of its question. While it waits for a person, its place is free for others;
        it comes back without waiting for one, because its harness is there already."""
        waited = active.waits
        active.hear(request)
        if active.waits and not waited:
            self._release()
        elif waited and not active.waits:
            self._free -= 1

    def _launch(self, started: ledger.Started) -> None:
        """Run an acquired turn in its place."""
        key = started.claim.session
        active = ActiveTurn(self._around, started)
        before = self._tasks.get(key)
        self._active[key] = active
        self._tasks[key] = asyncio.create_task(self._run(key, active, before))

    def active(self, key: SessionKey, turn_id: str) -> ActiveTurn | None:
        """Return the turn if it runs here."""
        active = self._active.get(key)
        return active if active is not None and active.claim.turn_id == turn_id else None

    async def stop(self, key: SessionKey, turn_id: str, finished: v1.TurnFinished) -> None:
        """Stop a turn that runs here and wait until it is terminal."""
        if self._work:
            # It may have been acquired by a write whose end this loop has not seen yet.
            await asyncio.wait(set(self._work))
        active = self.active(key, turn_id)
        if active is not None:
            active.stop(finished)
            await asyncio.wait({self._tasks[key]})

    async def forget(self, key: SessionKey, reason: str) -> None:
        """Stop whatever runs for a session, and its harness."""
        active = self._active.get(key)
        if active is not None:
            await self.stop(key, active.claim.turn_id, cancelled(reason))
        await self._around.supervisor.discard(key)

    async def drain(self, seconds: float) -> None:
        """Let running turns finish, then stop the rest as INTERRUPTED; queued ones stay for the next start."""
        self.stopping = True
        # A write that acquires turns is not cut off: they would be acquired and never run.
        while self._work:
            await asyncio.wait(set(self._work))
        if self._claimer is not None:
            self._claimer.cancel()
            await asyncio.gather(self._claimer, return_exceptions=True)
            self._unsubscribe()
        working = {self._tasks[key] for key, active in self._active.items() if not active.waits}
        if working:
            await asyncio.wait(working, timeout=seconds)
        for active in list(self._active.values()):
            active.stop(interrupted("The server was stopped while the turn ran; send the message again to go on."))
        if self._tasks:
            _, left = await asyncio.wait(
                set(self._tasks.values()), timeout=self._around.interrupt_seconds + _END_SECONDS
            )
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _run(self, key: SessionKey, active: ActiveTurn, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait({before})
            # Not `|=`: that would read the flag before the turn ran, and undo what was said meanwhile.
            if await active.run():
                self._backlog = True
        finally:
            if self._active.get(key) is active:
                del self._active[key], self._tasks[key]
            if not active.waits:
                self._release()

    async def _claim_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            claiming = self._begin(self._claim())
            await asyncio.wait({claiming})
            if claiming.exception() is not None:
                log.warning("cannot claim turns, trying again", exc_info=claiming.exception())
                await asyncio.sleep(_CLAIM_RETRY_SECONDS)
                self._backlog = True
                self._wake_claimer()

    async def _claim(self) -> None:
        free = 0 if self.stopping else max(self._free, 0)
        self._free -= free
        self._backlog = False
        started: list[ledger.Started] = []
        try:
            if free > 0:
                started = await self._around.store.write(lambda tx: self._acquire_next(tx, free))
        finally:
            self._free += free - len(started)
        for turn in started:
            self._launch(turn)
        self._backlog |= len(started) == free
        self._wake_claimer()

    def _acquire_next(self, tx: Tx, limit: int) -> list[ledger.Started]:
        started = []
        for turn in tx.turns.claimable(limit):
            session = read_session(tx, SessionKey(turn.tenant_id, turn.session_id))
            started.append(ledger.acquire(tx, session, turn, self.owner, self._around.agents.default_agent))
        return started


def cancelled(reason: str) -> v1.TurnFinished:
    """Return the end of a turn that somebody cancelled."""
    return v1.TurnFinished(state=v1.TURN_STATE_CANCELLED, state_reason=reason)


def interrupted(reason: str) -> v1.TurnFinished:
    """Return the end of a turn whose server stops."""
    error = to_error(KartaError(v1.ERROR_REASON_SERVER_STOPPING, reason))
    return v1.TurnFinished(state=v1.TURN_STATE_INTERRUPTED, state_reason=reason, error=error)
