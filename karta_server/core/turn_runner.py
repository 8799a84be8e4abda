"""Running turns: which ones run here, how many, and what comes next."""

import asyncio
import logging

from karta import v1
from karta_server.core import ledger
from karta_server.core.active_turn import ActiveTurn, Surroundings
from karta_server.core.session_record import read_session
from karta_server.error_codes import to_error
from karta_server.errors import KartaError
from karta_server.storage.contract import SessionKey, Tx

log = logging.getLogger(__name__)

_CLAIM_RETRY_SECONDS = 1.0
_LAUNCH_SECONDS = 1.0


class TurnRunner:
    """The turns that this instance runs. `start` it once; `drain` it before it goes."""

    def __init__(self, surroundings: Surroundings, owner: str, max_running: int) -> None:
        self._around = surroundings
        self.owner = owner
        self._free = max_running
        self._active: dict[SessionKey, ActiveTurn] = {}
        self._tasks: dict[SessionKey, asyncio.Task[None]] = {}
        self._wanted = asyncio.Event()
        self._launched = asyncio.Event()  # Set, and replaced, with each launch.
        self._backlog = True  # Whether turns may wait that could run if there were a place.
        self._claimer: asyncio.Task[None] | None = None
        self.stopping = False

    def start(self) -> None:
        """Begin to claim queued turns, those of an earlier process first."""
        self._wanted.set()
        self._claimer = asyncio.create_task(self._claim_forever(), name="claim turns")

    def require_open(self) -> None:
        """Refuse new work while the server stops."""
        if self.stopping:
            raise KartaError(
                v1.ERROR_REASON_SERVER_STOPPING,
                "The server is stopping; send the request to the next one, with the same request_id.",
            )

    def reserve(self) -> bool:
        """Take a place for a turn, if there is one; `launch` or `release` it."""
        if self._free <= 0 or self.stopping:
            return False
        self._free -= 1
        return True

    def release(self) -> None:
        """Give a place back."""
        self._free += 1
        self._wake_claimer()

    def queued(self) -> None:
        """Say that a turn waits which no running turn of its session will start."""
        self._backlog = True
        self._wake_claimer()

    def _wake_claimer(self) -> None:
        if self._backlog and self._free > 0:
            self._wanted.set()

    def launch(self, started: ledger.Started) -> None:
        """Run an acquired turn in a reserved place."""
        key = started.claim.session
        active = ActiveTurn(self._around, started)
        before = self._tasks.get(key)
        self._active[key] = active
        self._tasks[key] = asyncio.create_task(self._run(key, active, before))
        self._launched.set()
        self._launched = asyncio.Event()

    def active(self, key: SessionKey, turn_id: str) -> ActiveTurn | None:
        """Return the turn if it runs here."""
        active = self._active.get(key)
        return active if active is not None and active.claim.turn_id == turn_id else None

    async def deliver(self, request: v1.InputRequest) -> None:
        """Hand an answer to the turn that waits for it, if it runs here."""
        active = self.active(SessionKey(request.tenant_id, request.session_id), request.turn_id)
        if active is not None:
            await active.answer(request)

    async def stop(self, key: SessionKey, turn_id: str, finished: v1.TurnFinished) -> None:
        """Stop a turn that runs here and wait until it is terminal.

        One that was acquired and is about to be launched is waited for; returns
        after a while when none comes.
        """
        try:
            async with asyncio.timeout(_LAUNCH_SECONDS):
                while (active := self.active(key, turn_id)) is None:
                    await self._launched.wait()
        except TimeoutError:
            return
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
        if self._claimer is not None:
            self._claimer.cancel()
            await asyncio.gather(self._claimer, return_exceptions=True)
        working = {self._tasks[key] for key, active in self._active.items() if not active.pending_inputs}
        if working:
            await asyncio.wait(working, timeout=seconds)
        for active in list(self._active.values()):
            active.stop(interrupted("The server was stopped while the turn ran; send the message again to go on."))
        if self._tasks:
            await asyncio.wait(set(self._tasks.values()))

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
            self.release()

    async def _claim_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._claim()
            except KartaError as error:
                log.warning("cannot claim turns, trying again: %s", error.message)
                await asyncio.sleep(_CLAIM_RETRY_SECONDS)
                self.queued()

    async def _claim(self) -> None:
        free, self._free = self._free, 0
        self._backlog = False
        started: list[ledger.Started] = []
        try:
            if free > 0:
                started = await self._around.store.write(lambda tx: self._acquire_next(tx, free))
        finally:
            self._free += free - len(started)
        for turn in started:
            self.launch(turn)
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
