"""A conversation with Claude Code."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from claude_agent_sdk import Message, ResultMessage, SystemMessage

from karta import v1
from karta_server.error_codes import to_error
from karta_server.errors import KartaError
from karta_server.harness.claude_code.approvals import Approvals
from karta_server.harness.claude_code.definitions import Stamp, stamp
from karta_server.harness.claude_code.failures import start_failed, unknown_agent
from karta_server.harness.claude_code.launch import Launch, launch
from karta_server.harness.claude_code.memory import Memory
from karta_server.harness.claude_code.process import MAX_INBOX, ClaudeProcess, Inbox
from karta_server.harness.claude_code.translate import Translator
from karta_server.harness.claude_code.usage import CostMeter
from karta_server.harness.contract import HarnessSession, HarnessSettings, Prompt

_log = logging.getLogger(__name__)

_MARKS = "request_marker_lists_v1"


class _Turn:
    """A turn while it runs."""

    def __init__(self) -> None:
        # Never the turn's own id: Claude Code passes over a prompt whose id it has seen, and a turn may run twice.
        self.prompt_id = str(uuid.uuid4())
        self.inbox: Inbox = asyncio.Queue(MAX_INBOX)
        self.interrupted = False
        self.taken = asyncio.Event()
        """Claude Code works on the prompt, so an interrupt stops it."""
        self.is_ours = False
        """What comes belongs to this turn, not to one that Claude Code ran on its own."""

    def concerns(self, message: Message) -> bool:
        """Whether a message belongs to this turn. Called with each, in order."""
        marks = _prompt_ids(message)
        if isinstance(message, SystemMessage) and message.subtype == "init":
            self.taken.set()
            # A program too old to say which prompt it answers has no turns of its own either.
            self.is_ours |= _MARKS not in (message.data.get("capabilities") or [])
        if self.prompt_id in marks:
            self.is_ours = True
        if isinstance(message, ResultMessage) and not self.is_ours:
            # Of a turn that ended before it asked the model anything: a local command, an interrupt.
            origin = message.origin["kind"] if message.origin else "human"
            return not marks and origin == "human"
        return self.is_ours or (isinstance(message, ResultMessage) and self.prompt_id in marks)


class ClaudeCodeSession(HarnessSession):
    """A conversation; its process starts with the first turn, and anew for another agent, or an edited one."""

    def __init__(self, settings: HarnessSettings, program: Path, session_id: str, memory: bytes) -> None:
        self._settings = settings
        self._program = program
        self._memory = Memory.load(session_id, memory)
        self._cost = CostMeter(self._memory.cost_usd_micros)
        self._approvals = Approvals()
        self._process: ClaudeProcess | None = None
        self._launch: Launch | None = None
        self._definitions: Stamp = ()
        self._turn: _Turn | None = None
        self._closed = False

    @property
    def memory(self) -> bytes:
        """The conversation's id and what it takes to go on with it, as JSON."""
        return self._memory.dump()

    async def run_turn(self, prompt: Prompt) -> AsyncGenerator[v1.Event, None]:
        """Run one turn; see HarnessSession."""
        if self._turn is not None:
            raise RuntimeError("a turn of this session is running")
        turn = self._turn = _Turn()
        translator = Translator(prompt.agent, self._cost)
        try:
            for event in await self._deliver(turn, prompt, translator):
                yield event
            while not translator.finished:
                for event in self._translate(turn, translator, await turn.inbox.get()):
                    yield event
        finally:
            self._turn = None
            turn.taken.set()
            self._approvals.end_turn()
            if self._process is not None:
                self._process.detach()
            if not translator.finished:
                await self.close()

    async def answer(self, input_request: v1.InputRequest) -> None:
        """Give Claude Code an answer."""
        self._approvals.answer(input_request)

    async def interrupt(self) -> None:
        """Stop the running turn; held until Claude Code has taken its prompt."""
        turn = self._turn
        if turn is None:
            return
        turn.interrupted = True
        await turn.taken.wait()
        process = self._process
        if self._turn is turn and process is not None:
            with contextlib.suppress(KartaError):
                await process.interrupt()
            if self._turn is turn:
                self._approvals.deny_all()

    async def close(self) -> None:
        """End the process; idempotent."""
        self._closed = True
        self._approvals.end_turn()
        if self._process is not None:
            await self._process.close()

    async def _ensure_process(self, agent: str) -> bool:
        """Have a process that runs this agent; return whether the conversation could not be found again."""
        if self._closed:
            raise start_failed("this session was closed", "")
        definitions = await asyncio.to_thread(stamp, self._settings)
        changed, self._definitions = definitions != self._definitions, definitions
        if self._process is not None and self._process.alive and self._memory.agent == agent and not changed:
            return False
        await self._end_process()
        resume = self._memory.begun
        try:
            await self._start(agent, resume=resume)
            return False
        except KartaError as error:
            if not _is_about_transcript(error, resume=resume):
                raise
        # Killed in its first turn, a conversation may have a transcript or not, whatever memory says.
        await self._start(agent, resume=not resume)
        lost = resume and self._memory.turns > 0
        if resume:
            self._memory.turns = 0
            self._cost.last_micros = 0
        return lost

    async def _end_process(self) -> None:
        if self._process is not None:
            self._process.detach()
            await self._process.close()

    async def _start(self, agent: str, *, resume: bool) -> None:
        # A permission for the session holds as long as the process.
        self._approvals = Approvals()
        self._launch = await asyncio.to_thread(launch, self._settings, self._program, self._memory, agent, resume)
        options = self._launch.options(self._settings, self._approvals.decide)
        self._process = ClaudeProcess(options, self._settings.start_timeout_seconds)
        if self._closed:
            raise start_failed("this session was closed", "")
        await self._process.start()
        self._memory.agent = agent
        self._memory.agent_is_sticky |= bool(agent)

    async def _deliver(self, turn: _Turn, prompt: Prompt, translator: Translator) -> list[v1.Event]:
        """Send the prompt, unless the turn ends before; return the events that come before all others."""
        lost = await self._ensure_process(prompt.agent)
        ending = self._ending(turn, prompt.agent, translator)
        if ending is not None:
            return [ending]
        try:
            await self._send(turn, prompt)
        except KartaError:
            # It died since the last turn, and nobody had noticed yet.
            await self._end_process()
            lost = await self._ensure_process(prompt.agent)
            await self._send(turn, prompt)
        text = "Claude Code has no transcript of this conversation any more; it begins anew."
        return [translator.notice("conversation_lost", text)] if lost else []

    def _ending(self, turn: _Turn, agent: str, translator: Translator) -> v1.Event | None:
        """Return the end of a turn whose prompt is not to be sent at all."""
        if turn.interrupted:
            return translator.finish(v1.TURN_STATE_CANCELLED)
        known = self._process.agents if self._process is not None else []
        if agent and known and agent not in known:
            # Claude Code itself would silently answer as its default agent.
            return translator.finish(v1.TURN_STATE_FAILED, to_error(unknown_agent(agent, known)))
        return None

    async def _send(self, turn: _Turn, prompt: Prompt) -> None:
        if self._process is None:
            raise start_failed("this session was closed", "")
        self._memory.begun = True
        self._process.attach(turn.inbox)
        self._approvals.begin_turn(turn.inbox.put, lambda: turn.is_ours)
        await self._process.send(prompt.text, turn.prompt_id)

    def _translate(
        self, turn: _Turn, translator: Translator, item: Message | v1.InputRequest | None
    ) -> Iterator[v1.Event]:
        if item is None:
            raise self._process.ended() if self._process is not None else start_failed("it was closed", "")
        if isinstance(item, v1.InputRequest):
            if turn.is_ours:
                yield from translator.input_required(item)
            else:
                self._approvals.refuse(item)
            return
        if isinstance(item, SystemMessage) and item.subtype == "init" and self._launch is not None:
            self._launch.remember(self._memory, item.data)
        if not turn.concerns(item):
            return
        events = list(translator.events(item))
        if isinstance(item, ResultMessage):
            self._memory.turns += 1
            self._memory.cost_usd_micros = self._cost.last_micros
        yield from events


def _prompt_ids(message: Message) -> list[str]:
    """Return the ids of the prompts that a message says it answers."""
    fields = message.data if isinstance(message, SystemMessage) else vars(message)
    one = fields.get("user_message_uuid")
    return [*(fields.get("user_message_uuids") or []), *([one] if one else [])]


def _is_about_transcript(error: KartaError, *, resume: bool) -> bool:
    sign = "No conversation found" if resume else "already in use"
    return error.reason == v1.ERROR_REASON_HARNESS_START_FAILED and sign in error.message
