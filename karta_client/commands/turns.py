"""turns: messages to agents, and what became of them."""

from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from karta import v1
from karta_client import calls
from karta_client.calls import Call
from karta_client.commands import exits, output
from karta_client.commands.invocation import Group, Invocation, pass_invocation
from karta_client.commands.reconnecting import watch as watch_events
from karta_client.commands.sessions import shower
from karta_client.cursor import TurnCursor
from karta_client.terminal import error_line, shorten, usage_line

if TYPE_CHECKING:
    from karta_client.connection import Connection

_ENDINGS = {
    v1.TURN_STATE_COMPLETED: exits.OK,
    v1.TURN_STATE_FAILED: exits.TURN_FAILED,
    v1.TURN_STATE_CANCELLED: exits.TURN_FAILED,
    v1.TURN_STATE_INTERRUPTED: exits.TURN_FAILED,
    v1.TURN_STATE_INPUT_REQUIRED: exits.NEEDS_INPUT,
}
_STATES = {output.name_of(v1.TurnState, state, "TURN_STATE_"): state for state in v1.TurnState.values() if state}
_WAIT_SECONDS = 3600

_session = click.argument("session")
_turn = click.argument("turn", required=False, default="")


@click.group(
    cls=Group,
    epilog="""\
\b
Examples:
  kartactl turns list SESSION --state failed
  kartactl turns wait SESSION --timeout 60 && echo answered
  kartactl turns watch SESSION TURN -o jsonl
  kartactl turns cancel SESSION --reason "wrong branch"

Without TURN, the session's active turn is meant, or else its newest.""",
)
def turns() -> None:
    """Turns: messages to agents, and all that they do to answer them."""


@turns.command("list")
@_session
@click.option("--state", "states", multiple=True, type=click.Choice(list(_STATES)), help="Only these; repeatable.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at the most.")
@pass_invocation
def list_turns(invocation: Invocation, session: str, states: tuple[str, ...], limit: int) -> int:
    """List the turns of SESSION, newest first."""

    async def command(connection: "Connection") -> None:
        found = await _list(connection, session, limit, states)
        output.many(invocation.output, "turns", found, ("TURN", "STATE", "AGENT", "CREATED", "MESSAGE"), _row)

    return invocation.run(command)


@turns.command("get")
@_session
@_turn
@pass_invocation
def get(invocation: Invocation, session: str, turn: str) -> int:
    """Show TURN of SESSION."""

    async def command(connection: "Connection") -> None:
        request = v1.GetTurnRequest(session_id=session, turn_id=await _meant(connection, session, turn))
        _show(invocation, (await connection.call(Call[v1.GetTurnResponse]("turns", "GetTurn", request))).turn)

    return invocation.run(command)


@turns.command("wait")
@_session
@_turn
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, _WAIT_SECONDS),
    default=_WAIT_SECONDS,
    metavar="SECONDS",
    help="How long to wait: up to an hour.",
)
@pass_invocation
def wait(invocation: Invocation, session: str, turn: str, timeout: float) -> int:
    """Wait until TURN of SESSION is over, or waits for an answer (exit code 3)."""

    async def command(connection: "Connection") -> int:
        turn_id = await _meant(connection, session, turn)
        waited = (await connection.call(calls.wait_turn(session, turn_id, timeout))).turn
        _show(invocation, waited)
        return _ENDINGS.get(waited.state, exits.OK)

    return invocation.run(command)


@turns.command("watch")
@_session
@_turn
@click.option("--after", type=click.IntRange(0), default=0, help="Begin behind this sequence of the session.")
@pass_invocation
def watch(invocation: Invocation, session: str, turn: str, after: int) -> int:
    """Print the events of TURN to its end; the exit code is that of the turn."""

    async def command(connection: "Connection") -> int:
        turn_id = await _meant(connection, session, turn)
        cursor = TurnCursor(connection.backoff(), session_id=session, turn_id=turn_id, after_sequence=after)
        show_event, code = shower(invocation), exits.OK
        stream = watch_events(connection, cursor)
        async with aclosing(stream):
            async for events in stream:
                for event in events:
                    show_event(event)
                    if event.HasField("turn_finished"):
                        code = _ENDINGS.get(event.turn_finished.state, exits.OK)
        return code

    return invocation.run(command)


@turns.command("cancel")
@_session
@_turn
@click.option("--reason", default="", help="Why, for people.")
@pass_invocation
def cancel(invocation: Invocation, session: str, turn: str, reason: str) -> int:
    """Stop TURN of SESSION. One that is over stays as it is."""

    async def command(connection: "Connection") -> None:
        turn_id = await _meant(connection, session, turn)
        _show(invocation, (await connection.call(calls.cancel_turn(session, turn_id, reason))).turn)

    return invocation.run(command)


async def _list(connection: "Connection", session: str, limit: int, states: tuple[str, ...] = ()) -> list[v1.Turn]:
    request = v1.ListTurnsRequest(session_id=session, states=[_STATES[state] for state in states])
    found: list[v1.Turn] = []
    while len(found) < limit:
        request.page_size = min(limit - len(found), 50)
        page = await connection.call(Call[v1.ListTurnsResponse]("turns", "ListTurns", request))
        found += page.turns
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return found


async def _meant(connection: "Connection", session_id: str, turn: str) -> str:
    if turn:
        return turn
    session = (await connection.call(calls.get_session(session_id))).session
    if session.active_turn_id:
        return session.active_turn_id
    if newest := await _list(connection, session_id, 1):
        return newest[0].turn_id
    raise exits.CommandError(
        exits.NOT_FOUND, "TURN_NOT_FOUND", "the session has no turns yet", {"session_id": session_id}
    )


def _show(invocation: Invocation, turn: v1.Turn) -> None:
    output.one(invocation.output, turn, lambda: output.fields(_fields(turn)))


def _said(turn: v1.Turn) -> str:
    return shorten(" ".join(part.text for part in turn.message.parts), 60)


def _row(turn: v1.Turn) -> tuple[str, ...]:
    return (turn.turn_id, output.state_of(turn), turn.agent, output.time_of(turn.create_time), _said(turn))


def _fields(turn: v1.Turn) -> list[tuple[str, object]]:
    return [
        ("turn", turn.turn_id),
        ("session", turn.session_id),
        ("state", output.state_of(turn)),
        ("why", turn.state_reason),
        ("error", error_line(turn.error) if turn.HasField("error") else ""),
        ("agent", turn.agent),
        ("harness", turn.harness),
        ("participant", turn.participant_id),
        ("message", _said(turn)),
        ("answer", turn.text),
        ("usage", usage_line(turn.usage)),
        ("attempt", turn.attempt),
        ("events", f"{turn.first_sequence} to {turn.last_sequence or 'now'}"),
        ("created", output.time_of(turn.create_time)),
        ("started", output.time_of(turn.start_time)),
        ("ended", output.time_of(turn.end_time)),
    ]
