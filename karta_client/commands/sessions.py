"""sessions: durable conversations and who takes part in them."""

import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from karta import v1
from karta_client import calls
from karta_client.calls import Call
from karta_client.commands import output
from karta_client.commands.invocation import Invocation, LazyGroup, pairs, pass_invocation
from karta_client.commands.reconnecting import watch as watch_events
from karta_client.cursor import SessionCursor
from karta_client.terminal import Renderer, make_console, usage_line

if TYPE_CHECKING:
    from karta_client.connection import Connection

KINDS = [field.name for field in v1.Event.DESCRIPTOR.oneofs_by_name["kind"].fields]
_STATES = {"active": v1.SESSION_STATE_ACTIVE, "archived": v1.SESSION_STATE_ARCHIVED}

_metadata = click.option("--metadata", multiple=True, metavar="KEY=VALUE", callback=pairs)


@click.group(
    cls=LazyGroup,
    lazy={"participants": ("karta_client.commands.participants:participants", "Who takes part in a session.")},
    epilog="""\
\b
Examples:
  kartactl sessions list --metadata customer_id=abc123
  kartactl sessions create --metadata customer_id=abc123 --reuse -o json | jq -r .session_id
  kartactl sessions handoff SESSION billing-specialist
  kartactl sessions watch SESSION --after 0 --follow --kind text --kind turn_finished
  kartactl sessions participants add SESSION alice --name "Alice Chen\"""",
)
def sessions() -> None:
    """Sessions: durable conversations with one log each."""


@sessions.command("list")
@_metadata
@click.option("--user", default="", metavar="ID", help="Only this user's.")
@click.option("--agent", default="", metavar="NAME", help="Only those with this agent.")
@click.option("--state", type=click.Choice(list(_STATES)), help="Only those in this state.")
@click.option("--query", default="", metavar="TEXT", help="Only those with this text in their title or metadata.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at the most.")
@pass_invocation
def list_sessions(
    invocation: Invocation, metadata: dict[str, str], user: str, agent: str, state: str | None, query: str, limit: int
) -> int:
    """List sessions, newest activity first."""
    request = v1.ListSessionsRequest(
        metadata=metadata,
        user_id=user,
        agent=agent,
        query=query,
        states=[_STATES[state]] if state else [],
    )

    async def command(connection: "Connection") -> None:
        found: list[v1.Session] = []
        while len(found) < limit:
            request.page_size = min(limit - len(found), 50)
            page = await connection.call(Call[v1.ListSessionsResponse]("sessions", "ListSessions", request))
            found += page.sessions
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        header = ("SESSION", "TITLE", "AGENT", "STATE", "EVENTS", "UPDATED", "METADATA")
        output.many(invocation.output, "sessions", found, header, _row)

    return invocation.run(command)


@sessions.command("get")
@click.argument("session")
@pass_invocation
def get(invocation: Invocation, session: str) -> int:
    """Show SESSION."""

    async def command(connection: "Connection") -> None:
        show(invocation, (await connection.call(calls.get_session(session))).session)

    return invocation.run(command)


@sessions.command("create")
@_metadata
@click.option("--title", default="", help="A name for people.")
@click.option("--agent", default="", metavar="NAME", help="Who answers to begin with.")
@click.option("--harness", default="", metavar="NAME", help="What runs its agents.")
@click.option("--user", default="", metavar="ID", help="Whose workspace it works in.")
@click.option("--reuse", is_flag=True, help="Take the session with this metadata when there is one.")
@pass_invocation
def create(
    invocation: Invocation, metadata: dict[str, str], title: str, agent: str, harness: str, user: str, reuse: bool
) -> int:
    """Make a session; with --reuse, find the one that is known by the metadata."""
    request = v1.CreateSessionRequest(
        request_id=calls.new_request_id(),
        metadata=metadata,
        title=title,
        agent=agent,
        harness=harness,
        user_id=user,
        reuse=v1.SESSION_REUSE_LATEST if reuse else v1.SESSION_REUSE_NEVER,
    )

    async def command(connection: "Connection") -> None:
        call = Call[v1.CreateSessionResponse]("sessions", "CreateSession", request)
        created = await connection.call(call)
        invocation.hint("found" if created.reused else "made")
        show(invocation, created.session)

    return invocation.run(command)


@sessions.command("update")
@click.argument("session")
@click.option("--title", help="A new name for people.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", callback=pairs, help="Set entries; the others stay.")
@click.option("--unset", multiple=True, metavar="KEY", help="Remove an entry of the metadata; repeatable.")
@click.option("--agent", metavar="NAME", help="Hand off to this agent.")
@pass_invocation
def update(
    invocation: Invocation,
    session: str,
    title: str | None,
    metadata: dict[str, str],
    unset: tuple[str, ...],
    agent: str | None,
) -> int:
    """Change fields of SESSION."""
    given = {"title": title is not None, "metadata": bool(metadata or unset), "agent": agent is not None}
    paths = [path for path, is_given in given.items() if is_given]
    if not paths:
        raise click.UsageError("say what to change: --title, --metadata, --unset or --agent")

    def change(current: v1.Session) -> list[str]:
        current.title = current.title if title is None else title
        current.agent = current.agent if agent is None else agent
        current.metadata.update(metadata)
        for key in unset:
            current.metadata.pop(key, None)
        return paths

    return _change(invocation, session, change)


@sessions.command("handoff")
@click.argument("session")
@click.argument("agent")
@pass_invocation
def handoff(invocation: Invocation, session: str, agent: str) -> int:
    """Let AGENT answer in SESSION from the next turn on; "" is the default agent."""

    def change(current: v1.Session) -> list[str]:
        current.agent = agent
        return ["agent"]

    return _change(invocation, session, change)


@sessions.command("archive")
@click.argument("session")
@click.option("--undo", is_flag=True, help="Make it active again.")
@pass_invocation
def archive(invocation: Invocation, session: str, undo: bool) -> int:
    """Let SESSION take no more turns. Nothing is lost."""

    def change(current: v1.Session) -> list[str]:
        current.state = v1.SESSION_STATE_ACTIVE if undo else v1.SESSION_STATE_ARCHIVED
        return ["state"]

    return _change(invocation, session, change)


@sessions.command("delete")
@click.argument("session")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@pass_invocation
def delete(invocation: Invocation, session: str, yes: bool) -> int:
    """Remove SESSION with its turns and its log, for good."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask at; say --yes")
        click.confirm(f"Remove session {session} with its turns and its log, for good?", abort=True, err=True)

    async def command(connection: "Connection") -> None:
        await connection.call(calls.delete_session(session))
        invocation.hint(f"removed {session}")

    return invocation.run(command)


@sessions.command("watch")
@click.argument("session")
@click.option("--after", type=click.IntRange(0), default=0, show_default=True, help="Begin behind this sequence.")
@click.option("--follow", "-f", is_flag=True, help="Wait for what is to come.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), metavar="KIND", help="Only this event type.")
@pass_invocation
def watch(invocation: Invocation, session: str, after: int, follow: bool, kinds: tuple[str, ...]) -> int:
    """Print the log of SESSION. With --output json or jsonl, an event a line."""

    async def command(connection: "Connection") -> None:
        cursor = SessionCursor(
            connection.backoff(), session_id=session, after_sequence=after, kinds=kinds, follow=follow
        )
        show_event = shower(invocation)
        stream = watch_events(connection, cursor)
        async with aclosing(stream):
            async for events in stream:
                for event in events:
                    show_event(event)

    return invocation.run(command)


def shower(invocation: Invocation) -> Callable[[v1.Event], None]:
    """Return what prints events in the way that the output option asks for."""
    if invocation.output == "text":
        return Renderer(make_console()).event
    return lambda event: output.line(output.to_json(event))


def _change(invocation: Invocation, session_id: str, change: Callable[[v1.Session], list[str]]) -> int:
    async def command(connection: "Connection") -> None:
        session = (await connection.call(calls.get_session(session_id))).session
        # Its etag goes along: what somebody else changed in the meantime is not overwritten.
        updated = await connection.call(calls.update_session(session, change(session)))
        show(invocation, updated.session)

    return invocation.run(command)


def show(invocation: Invocation, session: v1.Session) -> None:
    """Print a session."""
    output.one(invocation.output, session, lambda: output.fields(_fields(session)))


def _row(session: v1.Session) -> tuple[str, ...]:
    return (
        session.session_id,
        session.title,
        session.agent,
        _state(session),
        str(session.latest_sequence),
        output.time_of(session.update_time),
        _pairs(session),
    )


def _fields(session: v1.Session) -> list[tuple[str, object]]:
    return [
        ("session", session.session_id),
        ("title", session.title),
        ("state", _state(session)),
        ("agent", session.agent),
        ("harness", session.harness),
        ("metadata", _pairs(session)),
        ("participants", ", ".join(participant.participant_id for participant in session.participants)),
        ("active turn", session.active_turn_id),
        ("queued turns", session.queued_turn_count),
        ("pending inputs", session.pending_input_count),
        ("events", session.latest_sequence),
        ("usage", usage_line(session.usage)),
        ("created", output.time_of(session.create_time)),
        ("updated", output.time_of(session.update_time)),
    ]


def _pairs(session: v1.Session) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(session.metadata.items()))


def _state(session: v1.Session) -> str:
    return output.name_of(v1.SessionState, session.state, "SESSION_STATE_")
