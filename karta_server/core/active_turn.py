"""A turn while it runs: from the harness's events to the log, and to one terminal event on every path."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import ClassVar, NamedTuple

from karta import v1
from karta_server.core import ledger
from karta_server.core.agents import Agents
from karta_server.core.events import add_usage
from karta_server.core.inbox import Inbox
from karta_server.core.inputs import ask, prepare_questions
from karta_server.core.merging import merged
from karta_server.error_codes import code_of, to_error
from karta_server.errors import KartaError
from karta_server.harness.contract import HarnessSession, Prompt
from karta_server.harness.supervisor import Supervisor
from karta_server.storage.contract import Fence, Store, Tx

log = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 5.0
# The turn ended otherwise, or its session is gone: there is nothing to record any more.
_TAKEN_AWAY = frozenset({v1.ERROR_REASON_FENCED, v1.ERROR_REASON_SESSION_NOT_FOUND, v1.ERROR_REASON_TURN_NOT_FOUND})


class Surroundings(NamedTuple):
    """What every turn of a server needs."""

    store: Store
    agents: Agents
    supervisor: Supervisor
    limits: v1.Limits
    interrupt_seconds: float
    """How long a stopped turn may take to end by itself before its harness is killed."""
    merge_above: int
    """How many events may wait to be written before their deltas are merged; 0: never merged."""


class ActiveTurn:
    """One run of one turn. The turn is terminal when `run` returns; when `run` is cancelled, recovery ends it
    at the next start."""

    def __init__(self, surroundings: Surroundings, started: ledger.Started) -> None:
        self._around = surroundings
        self.claim, self._turn = started.claim, started.turn
        self._fence = Fence(self.claim.turn_id, self.claim.fence)
        self._stop = asyncio.Event()
        self._stopped: v1.TurnFinished | None = None
        self._harness: HarnessSession | None = None
        self._finished: v1.TurnFinished | None = None
        self._usage = v1.Usage()
        self._text = ""
        self._memory: bytes | None = None
        self._open_tools: dict[str, None] = {}
        self._pending_inputs: set[str] = set()
        self._denier = ""
        self._answers: set[asyncio.Task[None]] = set()

    @property
    def waits(self) -> bool:
        """Whether the harness waits for a person."""
        return bool(self._pending_inputs)

    def stop(self, finished: v1.TurnFinished) -> None:
        """Ask the turn to end as `finished` says; the first call decides."""
        if self._stopped is None:
            self._stopped = finished
            self._stop.set()

    def hear(self, request: v1.InputRequest) -> None:
        """Take note of what became of an input request of this turn, and hand an answer to the harness."""
        if request.state == v1.INPUT_STATE_PENDING:
            self._pending_inputs.add(request.input_request_id)
            return
        self._pending_inputs.discard(request.input_request_id)
        if request.state == v1.INPUT_STATE_ANSWERED and self._harness is not None:
            if request.response.deny.interrupt:
                self._denier = request.responder
            task = asyncio.create_task(self._harness.answer(request))
            self._answers.add(task)
            task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("an answer did not reach turn %s", self.claim.turn_id, exc_info=task.exception())

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
            for task in (drive, stop, *self._answers):
                task.cancel()
            await asyncio.gather(drive, stop, *self._answers, return_exceptions=True)

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
        prompt = Prompt(turn_id=turn.turn_id, text=prompt_text(turn), agent=turn.agent)
        async with self._around.supervisor.lease(self.claim.session, turn.harness) as harness:
            self._harness = harness
            try:
                await self._consume(harness.run_turn(prompt))
            finally:
                self._memory = harness.memory
                self._harness = None

    async def _consume(self, source: AsyncGenerator[v1.Event, None]) -> None:
        inbox = Inbox(source)
        try:
            first = True
            while self._finished is None and (batch := await inbox.take()):
                events = [event for event in batch if self._prepare(event)]
                if 0 < self._around.merge_above < len(batch):
                    events = merged(events)
                await self._write(events, keep_memory=first)
                first = False
        finally:
            await inbox.close()

    def _prepare(self, event: v1.Event) -> bool:
        """Complete an event of the harness; return whether it belongs into the log."""
        event.turn_id = self.claim.turn_id
        if not event.source:
            event.source = v1.EVENT_SOURCE_AGENT
        if event.source == v1.EVENT_SOURCE_AGENT and not event.actor:
            event.actor = self._turn.agent
        kind = event.WhichOneof("kind")
        handler = self._HANDLERS.get(kind or "")
        if handler is not None:
            handler(self, event)
        return kind is not None and kind != "turn_finished"

    def _on_finished(self, event: v1.Event) -> None:
        _complete_error(event.turn_finished)
        self._finished = event.turn_finished

    def _on_completed(self, event: v1.Event) -> None:
        self._text = event.message_completed.text

    def _on_step_finish(self, event: v1.Event) -> None:
        add_usage(self._usage, event.step_finish.usage)

    def _on_tool_use(self, event: v1.Event) -> None:
        use = event.tool_use
        self._open_tools[use.tool_use_id] = None
        use.input, use.omitted_bytes = cut(use.input, self._around.limits.max_tool_text_bytes)

    def _on_tool_result(self, event: v1.Event) -> None:
        result = event.tool_result
        self._open_tools.pop(result.tool_use_id, None)
        result.output, result.omitted_bytes = cut(result.output, self._around.limits.max_tool_text_bytes)

    def _on_error(self, event: v1.Event) -> None:
        _complete_error(event)

    def _on_retrying(self, event: v1.Event) -> None:
        _complete_error(event.retrying)

    _HANDLERS: ClassVar[dict[str, Callable[["ActiveTurn", v1.Event], None]]] = {
        "error": _on_error,
        "message_completed": _on_completed,
        "retrying": _on_retrying,
        "step_finish": _on_step_finish,
        "tool_result": _on_tool_result,
        "tool_use": _on_tool_use,
        "turn_finished": _on_finished,
    }

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
            if finished.state == v1.TURN_STATE_CANCELLED and not finished.state_reason:
                finished.state_reason = f"Denied by {self._denier}." if self._denier else "The harness stopped."
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
        """Record the end, however long the store is away; the turn keeps its place until then."""
        key = self.claim.session
        pause_seconds = 0.1
        while True:
            try:
                session = await self._around.store.write(
                    lambda tx: ledger.finish(tx, key, self.claim.turn_id, self._fence, outcome), key
                )
            except KartaError as error:
                if error.reason in _TAKEN_AWAY:
                    log.info("turn %s was taken away: %s", self.claim.turn_id, error.message)
                    return False
                log.error("cannot record the end of turn %s, trying again: %s", self.claim.turn_id, error.message)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _MAX_PAUSE_SECONDS)
            else:
                log.info("turn %s finished state=%s", self.claim.turn_id, v1.TurnState.Name(outcome.finished.state))
                return session.queued_turn_count > 0


def _complete_error(holder: v1.Event | v1.Retrying | v1.TurnFinished) -> None:
    """Give an error the code that belongs to its reason; harnesses need not know."""
    if holder.HasField("error") and not holder.error.code:
        holder.error.code = code_of(holder.error.reason)


def prompt_text(turn: v1.Turn) -> str:
    """Return what the model reads: the message, with the name of who says it when somebody is named."""
    text = "\n\n".join(part.text for part in turn.message.parts)
    return f"{turn.display_name}: {text}" if turn.display_name else text


def cut(text: str, limit_bytes: int) -> tuple[str, int]:
    """Return text of at most `limit_bytes` and how many bytes were cut off."""
    data = text.encode()
    if len(data) <= limit_bytes:
        return text, 0
    kept = data[:limit_bytes].decode(errors="ignore")
    return kept, len(data) - len(kept.encode())
