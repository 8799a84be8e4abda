"""An interactive conversation in a session: what `kartactl chat` and the REPL of `karta-runtime dev` have in common."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

from karta import v1
from karta_client import calls
from karta_client.cleaning import clean
from karta_client.commands.asking import CtrlCError, Lines, ask
from karta_client.commands.exits import NEEDS_INPUT, OK
from karta_client.commands.following import Follower
from karta_client.errors import KartaError
from karta_client.terminal import Renderer, usage_line

if TYPE_CHECKING:
    from karta_client.connection import Connection


class Step(Enum):
    """What a line leads to."""

    GO_ON = 1
    REOPEN = 2
    """Follow `session` anew: another one was chosen."""
    END = 3


Handler = Callable[[str], Awaitable[Step | None]]


class Chat:
    """Reads lines, runs them as turns or /commands, and shows the session, other people's turns included.

    Ctrl-C cancels the running turn; twice at the prompt ends, as does the end
    of the input. Failures are shown and the conversation goes on.
    """

    def __init__(
        self, connection: "Connection", session: v1.Session, lines: Lines, renderer: Renderer, *, participant: str = ""
    ) -> None:
        self.connection = connection
        self.session = session
        self.lines = lines
        self.renderer = renderer
        self.participant = participant
        self.follower: Follower
        self._stopping: asyncio.Task[Step] | None = None
        self.commands: dict[str, tuple[Handler, str]] = {
            "/help": (self._help, "what can be typed here"),
            "/inputs": (self._inputs, "answer what waits in this session"),
            "/usage": (self._usage, "tokens and cost of this session"),
            "/cancel": (self._cancel, "stop the turn that runs"),
            "/quit": (self._quit, "leave; so does Ctrl-D"),
        }

    async def run(self) -> int:
        """Hold the conversation; return the exit code. Raises KartaError when the server is lost for good."""
        try:
            return await self._run()
        finally:
            self.lines.close()

    async def _run(self) -> int:
        step, after = Step.GO_ON, self.session.latest_sequence
        while step is not Step.END:
            followed = self.session.session_id
            self.follower = Follower(
                self.connection, self.session, self._show, after=after, participant_id=self.participant
            )
            async with self.follower:
                step = await self._converse()
            same = self.session.session_id == followed
            after = self.follower.cursor if same else self.session.latest_sequence
            if step is Step.REOPEN and same:
                self.session = (await self.connection.call(calls.get_session(followed))).session
        return NEEDS_INPUT if self.follower.pending and self.follower.active_turn_id else OK

    def _show(self, event: v1.Event) -> None:
        if event.HasField("agent_handoff"):
            self.session.agent = event.agent_handoff.to_agent
        self.renderer.event(event)

    async def _converse(self) -> Step:
        step = await self._guarded(self._catch_up())
        interrupted = False
        while step is Step.GO_ON:
            try:
                line = (await self.lines.read(self.prompt, record=True)).strip()
            except EOFError:
                return Step.END
            except CtrlCError:
                if interrupted:
                    return Step.END
                interrupted = True
                self.renderer.line("Ctrl-C again, or /quit, to leave", "dim")
                continue
            interrupted = False
            if line:
                step = await self._guarded(self.command(line) if line.startswith("/") else self._say(line))
        return step

    def prompt(self) -> str:
        """Return what to show in front of the line that is typed."""
        return f"{clean(self.session.agent)}> "

    async def _guarded(self, work: Awaitable[Step | None]) -> Step:
        try:
            return await work or Step.GO_ON
        except EOFError:
            return Step.END
        except KartaError as error:
            self.renderer.line(f"{error.reason}: {error.message}", "red")
            return Step.REOPEN if self.follower.ended else Step.GO_ON

    async def command(self, line: str) -> Step | None:
        """Run a /command."""
        name, _, argument = line.partition(" ")
        if name not in self.commands:
            self.renderer.line(f"{name} is not a command; /help lists them", "yellow")
            return None
        return await self.commands[name][0](argument.strip())

    async def _catch_up(self) -> None:
        """Follow the turn that runs already, so that what it asks is answered."""
        if turn_id := self.session.active_turn_id:
            self.renderer.line("A turn is running; following it", "dim")
            self.follower.mine(turn_id)
            await self.follow(turn_id)

    async def _say(self, message: str) -> None:
        turn = await self.follower.start(message, accepted=lambda turn: self.renderer.own.add(turn.turn_id))
        await self.follow(turn.turn_id)
        self.renderer.own.discard(turn.turn_id)

    async def follow(self, turn_id: str) -> None:
        """Follow a turn to its end; Ctrl-C cancels it."""
        with _on_ctrl_c(lambda: self._stop(turn_id)):
            try:
                await self.follower.finish(turn_id, self._answer, any_turn=True)
            except CtrlCError:
                await self.cancel(turn_id)
                await self.follower.finish(turn_id, self._answer)
            finally:
                if self._stopping:
                    await self._stopping

    async def _answer(self, request: v1.InputRequest) -> v1.InputResponse:
        return await ask(request, self.lines, self.renderer)

    def _stop(self, turn_id: str) -> None:
        self.renderer.line("cancelling the turn", "yellow")
        self._stopping = asyncio.create_task(self._guarded(self.cancel(turn_id)))

    async def cancel(self, turn_id: str) -> None:
        """Cancel a turn; returns when it is over."""
        await self.connection.call(calls.cancel_turn(self.session.session_id, turn_id, "cancelled at the terminal"))

    async def _help(self, _: str) -> None:
        width = max(map(len, self.commands))
        for name, (_handler, text) in self.commands.items():
            self.renderer.line(f"{name.ljust(width)}  {text}")

    async def _inputs(self, _: str) -> None:
        if not self.follower.pending:
            self.renderer.line("nothing waits for an answer", "dim")
        for request in list(self.follower.pending.values()):
            try:
                await self.follower.resolve(request, self._answer)
            except CtrlCError:
                return
        if turn_id := self.follower.active_turn_id:
            self.follower.mine(turn_id)
            await self.follow(turn_id)

    async def _usage(self, _: str) -> None:
        session = (await self.connection.call(calls.get_session(self.session.session_id))).session
        self.renderer.line(usage_line(session.usage))

    async def _cancel(self, _: str) -> None:
        if turn_id := self.follower.active_turn_id:
            await self.cancel(turn_id)
        else:
            self.renderer.line("no turn runs", "dim")

    async def _quit(self, _: str) -> Step:
        return Step.END


@contextmanager
def _on_ctrl_c(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` for Ctrl-C; a second one is a KeyboardInterrupt as ever."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    loop.add_signal_handler(signal.SIGINT, first)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
