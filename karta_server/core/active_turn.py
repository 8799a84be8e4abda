"""A turn while it runs: from the harness's events to the log, and to one terminal event on every path."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import NamedTuple

from karta import v1
from karta_server.core import events, ledger
from karta_server.core.agents import Agents
from karta_server.core.inputs import ask, prepare_questions
from karta_server.error_codes import code_of, to_error
from karta_server.errors import KartaError
from karta_server.harness.contract import HarnessSession, Prompt
from karta_server.harness.supervisor import Supervisor
from karta_server.storage.contract import Fence, Store, Tx

log = logging.getLogger(__name__)

# What may wait between the harness and the log; then the harness is held back.
_MAX_WAITING_EVENTS = 256
_RECORD_ATTEMPTS = 6


class Surroundings(NamedTuple):
    """What every turn of a server needs."""

    store: Store
    agents: Agents
    supervisor: Supervisor
    limits: v1.Limits
    interrupt_seconds: float
    """How long a stopped turn may take to end by itself before its harness is killed."""


class ActiveTurn:
    """One run of one turn. `run` never raises; the turn is terminal when it returns, unless the store
    is gone: then recovery ends it at the next start."""

    def __init__(self, surroundings: Surroundings, started: ledger.Started) -> None:
        self._around = surroundings
        self.claim, self._session, self._turn = started
        self._fence = Fence(self.claim.turn_id, self.claim.fence)
        self._stop = asyncio.Event()
        self._stopped: v1.TurnFinished | None = None
        self._harness: HarnessSession | None = None
        self._finished: v1.TurnFinished | None = None
        self._usage = v1.Usage()
        self._text = ""
        self._memory: bytes | None = None
        self._open_tools: dict[str, None] = {}
        self.pending_inputs: set[str] = set()
        """Input requests that the harness waits for."""

    def stop(self, finished: v1.TurnFinished) -> None:
        """Ask the turn to end as `finished` says; the first call decides."""
        if self._stopped is None:
            self._stopped = finished
            self._stop.set()

    async def answer(self, request: v1.InputRequest) -> None:
        """Hand an answer to the harness."""
        self.pending_inputs.discard(request.input_request_id)
        if self._harness is not None:
            await self._harness.answer(request)

    async def run(self) -> bool:
        """Run the turn to its end; return whether turns wait behind it."""
        drive = asyncio.create_task(self._drive(), name=f"turn {self.claim.turn_id}")
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({drive, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not drive.done():
                await self._interrupt(drive)
            return await self._record(self._outcome(drive))
        finally:
            for task in (drive, stop):
                task.cancel()
            await asyncio.gather(drive, stop, return_exceptions=True)

    async def _interrupt(self, drive: asyncio.Task[None]) -> None:
        try:
            async with asyncio.timeout(self._around.interrupt_seconds):
                if self._harness is not None:
                    await self._harness.interrupt()
                    await asyncio.wait({drive})
        except TimeoutError:
            log.warning("turn %s did not end when interrupted; its harness is killed", self.claim.turn_id)
        except Exception:
            log.exception("interrupting turn %s failed; its harness is killed", self.claim.turn_id)
        drive.cancel()
        await asyncio.wait({drive})

    async def _drive(self) -> None:
        turn = self._turn
        (await self._around.agents.known(turn.harness, turn.agent)).require(turn.agent)
        prompt = Prompt(turn_id=turn.turn_id, text=prompt_text(self._session, turn), agent=turn.agent)
        async with self._around.supervisor.lease(self.claim.session, turn.harness) as harness:
            self._harness = harness
            try:
                await self._consume(harness.run_turn(prompt))
            finally:
                self._memory = harness.memory
                self._harness = None

    async def _consume(self, source: AsyncGenerator[v1.Event, None]) -> None:
        queue: asyncio.Queue[v1.Event | None] = asyncio.Queue(_MAX_WAITING_EVENTS)
        pump = asyncio.create_task(_pump(source, queue))
        try:
            first = True
            while self._finished is None and (batch := await _next_batch(queue)):
                await self._write([e for e in batch if self._prepare(e)], keep_memory=first)
                first = False
            if self._finished is None:
                await pump
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    def _prepare(self, event: v1.Event) -> bool:
        """Complete an event of the harness; return whether it belongs into the log."""
        event.turn_id = self.claim.turn_id
        event.source = event.source or v1.EVENT_SOURCE_AGENT
        if event.source == v1.EVENT_SOURCE_AGENT and not event.actor:
            event.actor = self._turn.agent
        kind = event.WhichOneof("kind")
        _complete_error(event)
        limit = self._around.limits.max_tool_text_bytes
        if kind == "turn_finished":
            self._finished = event.turn_finished
        elif kind == "message_completed":
            self._text = event.message_completed.text
        elif kind == "step_finish":
            events.add_usage(self._usage, event.step_finish.usage)
        elif kind == "tool_use":
            self._open_tools[event.tool_use.tool_use_id] = None
            event.tool_use.input, event.tool_use.omitted_bytes = cut(event.tool_use.input, limit)
        elif kind == "tool_result":
            self._open_tools.pop(event.tool_result.tool_use_id, None)
            event.tool_result.output, event.tool_result.omitted_bytes = cut(event.tool_result.output, limit)
        return kind is not None and kind != "turn_finished"

    async def _write(self, batch: list[v1.Event], *, keep_memory: bool) -> None:
        key = self.claim.session
        asked = prepare_questions(self.claim, self._turn.agent, batch)
        if not asked and not keep_memory:
            if batch:
                await self._around.store.append(key, batch, self._fence)
            return
        memory = self._harness.memory if keep_memory and self._harness is not None else None

        def unit(tx: Tx) -> None:
            if memory is not None:
                tx.sessions.set_memory(key, memory)
            if asked:
                ask(tx, self.claim, batch, self._around.limits.max_pending_inputs)
            tx.append(key, batch, self._fence)

        await self._around.store.write(unit, key)
        self.pending_inputs.update(asked)

    def _outcome(self, drive: asyncio.Task[None]) -> ledger.Outcome:
        finished = self._end(drive)
        if not finished.HasField("usage"):
            finished.usage.CopyFrom(self._usage)
        return ledger.Outcome(finished, self._text, self._memory, tuple(self._open_tools))

    def _end(self, drive: asyncio.Task[None]) -> v1.TurnFinished:
        error = None if drive.cancelled() else drive.exception()
        finished = self._finished
        if self._stopped is not None and (finished is None or finished.state != v1.TURN_STATE_COMPLETED):
            if finished is not None and finished.HasField("usage"):
                self._stopped.usage.CopyFrom(finished.usage)
            return self._stopped
        if finished is not None and error is None:
            return finished
        if isinstance(error, KartaError):
            return ledger.failed(to_error(error))
        if error is not None:
            log.error("turn %s failed unexpectedly", self.claim.turn_id, exc_info=error)
            return ledger.failed(to_error(error))
        reason = f"The harness {self._turn.harness} ended the turn without saying how."
        broken = KartaError(v1.ERROR_REASON_HARNESS_FAILED, reason, harness=self._turn.harness)
        return ledger.failed(to_error(broken))

    async def _record(self, outcome: ledger.Outcome) -> bool:
        key = self.claim.session
        for attempt in range(_RECORD_ATTEMPTS):
            try:
                session = await self._around.store.write(
                    lambda tx: ledger.finish(tx, key, self.claim.turn_id, self._fence, outcome), key
                )
            except KartaError as error:
                if error.reason != v1.ERROR_REASON_STORE_UNAVAILABLE:
                    log.info("turn %s was taken away: %s", self.claim.turn_id, error.message)
                    return False
                log.warning("cannot record the end of turn %s: %s", self.claim.turn_id, error.message)
                await asyncio.sleep(0.1 * 2**attempt)
            else:
                log.info("turn %s finished state=%s", self.claim.turn_id, v1.TurnState.Name(outcome.finished.state))
                return session.queued_turn_count > 0
        log.error("turn %s could not be ended; it will be at the next start", self.claim.turn_id)
        return False


def _complete_error(event: v1.Event) -> None:
    """Give an error the code that belongs to its reason; harnesses need not know."""
    for holder in (event, event.retrying, event.turn_finished):
        if holder.HasField("error") and not holder.error.code:
            holder.error.code = code_of(holder.error.reason)


def prompt_text(session: v1.Session, turn: v1.Turn) -> str:
    """Return what the model reads: the message, with the name of who says it when somebody is named."""
    text = "\n\n".join(part.text for part in turn.message.parts)
    if not turn.participant_id:
        return text
    names = {p.participant_id: p.display_name for p in session.participants}
    return f"{names.get(turn.participant_id) or turn.participant_id}: {text}"


def cut(text: str, limit_bytes: int) -> tuple[str, int]:
    """Return text of at most `limit_bytes` and how many bytes were cut off."""
    data = text.encode()
    if len(data) <= limit_bytes:
        return text, 0
    kept = data[:limit_bytes].decode(errors="ignore")
    return kept, len(data) - len(kept.encode())


async def _pump(source: AsyncGenerator[v1.Event, None], queue: "asyncio.Queue[v1.Event | None]") -> None:
    """Move events into the queue; None says that there are no more."""
    try:
        async with contextlib.aclosing(source):
            async for event in source:
                await queue.put(event)
    except Exception:
        await queue.put(None)
        raise
    await queue.put(None)


async def _next_batch(queue: "asyncio.Queue[v1.Event | None]") -> list[v1.Event]:
    """Return what waits, at least one event; nothing at the end."""
    batch: list[v1.Event] = []
    event = await queue.get()
    while event is not None:
        batch.append(event)
        if queue.empty():
            break
        event = queue.get_nowait()
    else:
        if batch:
            queue.put_nowait(None)
    return batch
