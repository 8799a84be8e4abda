"""send, stream and chat: messages to agents."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from karta import v1
from karta_client import calls
from karta_client.cleaning import clean
from karta_client.commands import exits, output
from karta_client.commands.asking import CtrlCError, Lines, StreamLines, TerminalLines, ask
from karta_client.commands.chatting import Chat
from karta_client.commands.following import Follower
from karta_client.commands.invocation import Command, Invocation, pairs, pass_invocation
from karta_client.terminal import Renderer, error_line, make_console, shorten

if TYPE_CHECKING:
    from karta_client.connection import Connection

_MAX_MESSAGE = 4 * 1024 * 1024


@dataclass
class Conversation:
    """What the options of send, stream and chat say: where to speak, as whom, to whom."""

    session: str
    metadata: dict[str, str]
    agent: str
    participant: str
    approve: str = "ask"

    async def open(self, connection: "Connection", *, agent: str = "") -> tuple[v1.Session, int]:
        """Find or make the session; return it and the sequence behind which news begin."""
        if self.session:
            session = (await connection.call(calls.get_session(self.session))).session
            return session, session.latest_sequence
        created = await connection.call(
            calls.create_session(metadata=self.metadata, title="", agent=agent, harness="", user_id="", participants=())
        )
        return created.session, created.session.latest_sequence if created.reused else 0


def _conversation(function: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--session", default="", metavar="ID", help="Go on in this session. Default: a new one."),
        click.option(
            "--metadata",
            multiple=True,
            metavar="KEY=VALUE",
            callback=pairs,
            help="Go on in the session that is known by this, or make it; repeatable.",
        ),
        click.option("--agent", default="", metavar="NAME", help="Who answers. Default: the session's agent."),
        click.option("--participant", default="", metavar="ID", help="Who speaks: a participant of the session."),
    )
    for option in reversed(options):
        function = option(function)
    return function


_approve = click.option(
    "--approve",
    type=click.Choice(["ask", "deny", "allow-once"]),
    default="ask",
    show_default=True,
    help="What to do when a tool asks for permission. Without a terminal, ask ends with exit code 3.",
)


@click.command(
    cls=Command,
    epilog="""\
\b
Examples:
  kartactl send "What does this project do?"
  kartactl send "And who wrote it?" --metadata topic=tour
  echo "Summarise: $(git log -5)" | kartactl send - --approve deny
  kartactl send "Hello" --output json | jq -r .text""",
)
@click.argument("message")
@_conversation
@_approve
@pass_invocation
def send(invocation: Invocation, /, message: str, approve: str, **options: Any) -> int:
    """Send MESSAGE (- for standard input) and print the agent's final answer.

    With --output json, the whole turn is printed.
    """
    return _Exchange(invocation, Conversation(approve=approve, **options), streams=False).run(message)


@click.command(
    cls=Command,
    epilog="""\
\b
Examples:
  kartactl stream "Run the tests and mend what fails"
  kartactl stream "Go on" --session 0199c2b4-… --approve allow-once
  kartactl stream "Hello" --output jsonl | jq -j '.text.text // empty'

With --output json or jsonl every event is a line; their sequences have no gap.""",
)
@click.argument("message")
@_conversation
@_approve
@pass_invocation
def stream(invocation: Invocation, /, message: str, approve: str, **options: Any) -> int:
    """Send MESSAGE (- for standard input) and print what happens as it happens.

    Ctrl-C leaves the turn alone, and says how to watch or to cancel it.
    """
    return _Exchange(invocation, Conversation(approve=approve, **options), streams=True).run(message)


@click.command(
    cls=Command,
    epilog="""\
\b
Examples:
  kartactl chat --metadata topic=tour
  kartactl chat --session 0199c2b4-… --participant alice

Type /help inside. Ctrl-C cancels the running turn; twice at the prompt leaves.""",
)
@_conversation
@pass_invocation
def chat(invocation: Invocation, /, **options: Any) -> int:
    """Hold a conversation in a session: type, watch, answer what is asked."""
    if invocation.output != "text":
        raise click.UsageError("chat is for people; use stream --output jsonl")
    conversation = Conversation(**options)

    async def command(connection: "Connection") -> int:
        session, _ = await conversation.open(connection, agent=conversation.agent)
        if conversation.agent and session.agent != conversation.agent:
            session.agent = conversation.agent
            session = (await connection.call(calls.update_session(session, ["agent"]))).session
        invocation.hint(f"session {session.session_id} - /help lists what can be typed")
        lines = TerminalLines() if sys.stdin.isatty() and sys.stdout.isatty() else StreamLines()
        renderer = Renderer(make_console(), asks=True)
        return await Chat(connection, session, lines, renderer, participant=conversation.participant).run()

    return invocation.run(command)


class _Exchange:
    """One message and the turn that answers it: shown while it runs, or only its end."""

    def __init__(self, invocation: Invocation, conversation: Conversation, *, streams: bool) -> None:
        self.invocation = invocation
        self.conversation = conversation
        self.turn: v1.Turn | None = None
        self._text = invocation.output == "text"
        self._streams = streams
        self._lines = self._open_lines()
        # Only a stream for people may write to stdout besides its result.
        self._renderer = Renderer(make_console(None if streams and self._text else sys.stderr), asks=bool(self._lines))

    def _open_lines(self) -> Lines | None:
        stderr = not (self._streams and self._text)
        if sys.stdin.isatty() and (sys.stderr if stderr else sys.stdout).isatty():
            return TerminalLines(stderr=stderr)
        return None

    def run(self, message: str) -> int:
        if message == "-":
            message = sys.stdin.read(_MAX_MESSAGE + 1)
            if len(message) > _MAX_MESSAGE:
                raise click.UsageError(f"the message is longer than {_MAX_MESSAGE} characters")
        try:
            return self.invocation.run(lambda connection: self._converse(connection, message))
        except (KeyboardInterrupt, CtrlCError):
            if self.turn:
                self.invocation.hint(f"\n{self._fate('goes on')}")
            return exits.INTERRUPTED

    async def _converse(self, connection: "Connection", message: str) -> int:
        session, after = await self.conversation.open(connection)
        follower = Follower(connection, session, self._show, after=after, participant_id=self.conversation.participant)
        async with follower:
            self.turn = await follower.start(message, agent=self.conversation.agent, last=True, accepted=self._accepted)
            await follower.finish(self.turn.turn_id, self._answer)
        request = v1.GetTurnRequest(session_id=session.session_id, turn_id=self.turn.turn_id)
        turn = (await connection.call(calls.Call[v1.GetTurnResponse]("turns", "GetTurn", request))).turn
        return self._end(turn)

    def _accepted(self, turn: v1.Turn) -> None:
        self.turn = turn
        self._renderer.own.add(turn.turn_id)

    def _show(self, event: v1.Event) -> None:
        if not self._streams:
            return
        if not self._text:
            output.line(output.to_json(event))
        elif self.turn and event.turn_id == self.turn.turn_id:
            self._renderer.event(event)

    async def _answer(self, request: v1.InputRequest) -> v1.InputResponse:
        match self.conversation.approve:
            case "allow-once" if v1.INPUT_OPTION_ALLOW_ONCE in request.options:
                return v1.InputResponse(allow=v1.Allow(scope=v1.ALLOW_SCOPE_ONCE))
            case "deny" if v1.INPUT_OPTION_DENY in request.options:
                return v1.InputResponse(deny=v1.Deny(message="Denied by kartactl --approve deny."))
        if self._lines is None:
            raise self._needs_input(request)
        return await ask(request, self._lines, self._renderer)

    def _needs_input(self, request: v1.InputRequest) -> exits.CommandError:
        question = request.kind == v1.INPUT_KIND_QUESTION
        how = "--answer 1=LABEL" if question else "--allow or --deny"
        asked = shorten(request.title or request.tool_name, 200)
        message = (
            f"{asked} - answer with: kartactl inputs respond {request.input_request_id} {how}. {self._fate('waits')}"
        )
        ids = {
            "input_request_id": request.input_request_id,
            "session_id": request.session_id,
            "turn_id": request.turn_id,
        }
        return exits.CommandError(exits.NEEDS_INPUT, "INPUT_REQUIRED", message, ids)

    def _fate(self, what: str) -> str:
        """Return what becomes of the turn when this command ends now."""
        assert self.turn
        ids = f"{self.turn.session_id} {self.turn.turn_id}"
        if self.invocation.server_ends_with_us():
            return (
                "This folder's server ends when nobody uses it any more, and the turn with it; "
                "keep one running with: karta-runtime dev-serve"
            )
        return f"The turn {what}. Watch it: kartactl turns watch {ids}; stop it: kartactl turns cancel {ids}"

    def _end(self, turn: v1.Turn) -> int:
        completed = turn.state == v1.TURN_STATE_COMPLETED
        if not self._streams:
            self._print(turn, completed)
        self.invocation.hint(f"session {turn.session_id}") if self._text else None
        return exits.OK if completed else exits.TURN_FAILED

    def _print(self, turn: v1.Turn, completed: bool) -> None:
        if not self._text:
            output.one(self.invocation.output, turn, lambda: "")
        elif completed:
            output.line(clean(turn.text) if sys.stdout.isatty() else turn.text)
        else:
            why = error_line(turn.error) if turn.HasField("error") else turn.state_reason
            sys.stderr.write(f"kartactl: turn {output.state_of(turn)}: {clean(why)}\n")
