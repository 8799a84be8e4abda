"""karta-runtime dev: a conversation with the agents of a folder that goes on while they are edited."""

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from karta import v1
from karta_client import calls
from karta_client.commands import exits
from karta_client.commands.asking import Lines, StreamLines, TerminalLines
from karta_client.commands.chatting import Chat, Step
from karta_client.commands.invocation import OutputClosedError
from karta_client.connection import Connection
from karta_client.errors import KartaError
from karta_client.terminal import Renderer, make_console, shorten
from karta_server.dev_reload import changes

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

METADATA = {"karta.dev": "repl"}
_SHOWN_SESSIONS = 20
_DEFAULT = "the default agent"


@click.command(
    epilog="""\
\b
Examples:
  karta-runtime dev
  karta-runtime dev examples/support --agent billing-specialist
  echo "What is in this folder?" | karta-runtime dev

/help lists what can be typed. Ctrl-C cancels the running turn; twice at the
prompt leaves. Exit code 3: a turn waits for an answer and the input ended."""
)
@click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--harness", default="", metavar="NAME", help="What runs the agents. Default: the server's choice.")
@click.option("--agent", default="", metavar="NAME", help="Who answers to begin with.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Default: PATH/.karta")
@click.option("--session", default="", metavar="ID", help="Go on in this session. Default: the folder's last one.")
@click.option("--new", is_flag=True, help="Begin a new session.")
def dev(path: Path, harness: str, agent: str, state: Path | None, session: str, new: bool) -> None:
    """Talk to the agents of the folder PATH, and edit them while you do."""
    project = path.resolve()
    opening = Opening(harness, agent, session, new)
    try:
        code = asyncio.run(_dev(project, state.resolve() if state else None, opening))
    except (KeyboardInterrupt, BrokenPipeError, OutputClosedError):
        code = exits.INTERRUPTED
    except KartaError as error:
        failure, _ = exits.describe(error)
        click.echo(f"karta-runtime dev: {failure.reason}: {failure.message}", err=True)
        code = failure.exit_code
    raise click.exceptions.Exit(code)


class Opening:
    """Which session to open, and with whom."""

    def __init__(self, harness: str = "", agent: str = "", session: str = "", new: bool = False) -> None:
        self.harness = harness
        self.agent = agent
        self.session = session
        self.new = new

    async def open(self, connection: Connection) -> v1.Session:
        """Find or make the session, and hand it to the agent that was named."""
        if self.session:
            session = (await connection.call(calls.get_session(self.session))).session
        else:
            session = await self._create(connection, new=self.new)
            if self.harness and session.harness != self.harness:
                session = await self._create(connection, new=True)
        if self.agent and session.agent != self.agent:
            session.agent = self.agent
            session = (await connection.call(calls.update_session(session, ["agent"]))).session
        return session

    async def _create(self, connection: Connection, *, new: bool) -> v1.Session:
        request = v1.CreateSessionRequest(
            request_id=calls.new_request_id(),
            metadata=METADATA,
            harness=self.harness,
            agent=self.agent,
            reuse=v1.SESSION_REUSE_NEVER if new else v1.SESSION_REUSE_LATEST,
        )
        call = calls.Call[v1.CreateSessionResponse]("sessions", "CreateSession", request)
        return (await connection.call(call)).session


async def _dev(project: Path, state: Path | None, opening: Opening) -> int:
    # Never KARTA_TARGET: the files that are edited here are those of this folder.
    async with Connection("", project, state=state) as connection:
        session = await opening.open(connection)
        repl = Repl(connection, session, project, state or project / ".karta")
        return await repl.run()


class Repl(Chat):
    """A chat that knows the agents of the folder, and notices when they change."""

    def __init__(self, connection: Connection, session: v1.Session, project: Path, state: Path) -> None:
        super().__init__(connection, session, self._open_lines(state), Renderer(make_console(), asks=True))
        self.project = project
        self.agents: dict[str, v1.Agent] = {}
        self.commands |= {
            "/agents": (self._agents, "who is there"),
            "/agent": (self._agent, "NAME: hand over to another agent; without a name, to the default one"),
            "/sessions": (self._sessions, "the newest sessions of this folder"),
            "/session": (self._session, "ID: go on in another session"),
            "/new": (self._new, "begin a new session"),
        }

    def _open_lines(self, state: Path) -> Lines:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return StreamLines()
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return TerminalLines(history=state / "repl_history", completer=self._completer())

    def _completer(self) -> "Completer":
        from prompt_toolkit.completion import DynamicCompleter, NestedCompleter

        def now() -> "Completer":
            names = dict.fromkeys(self.agents)
            return NestedCompleter.from_nested_dict(dict.fromkeys(self.commands) | {"/agent": names})

        return DynamicCompleter(now)

    async def run(self) -> int:
        """Hold the conversation; return the exit code."""
        self.agents = await self._list_agents()
        self._greet()
        await self._keep_agent()
        reloading = asyncio.create_task(self._reload())
        try:
            return await super().run()
        finally:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)

    def _greet(self) -> None:
        session = self.session
        agents = ", ".join(self.agents) or "none of its own"
        self.renderer.line(f"{self.project.name} on {session.harness}; agents: {agents}")
        begun = f"going on after {session.latest_sequence} events" if session.latest_sequence > 1 else "new"
        self.renderer.line(f"session {session.session_id} ({begun}); /help lists what can be typed", "dim")

    async def _list_agents(self) -> dict[str, v1.Agent]:
        listed = await self.connection.call(calls.list_agents(self.session.harness))
        return {agent.name: agent for agent in listed.agents}

    async def _reload(self) -> None:
        async with contextlib.aclosing(changes(self.project)) as watching:
            async for paths in watching:
                await self._guarded(self._changed(paths))

    async def _changed(self, paths: set[str]) -> None:
        if "karta.jsonc" in paths:
            self.renderer.line("karta.jsonc changed: the next start of the server reads it", "magenta")
        if "CLAUDE.md" in paths:
            self.renderer.line("CLAUDE.md changed", "magenta")
        before, self.agents = self.agents, await self._list_agents()
        for text in difference(before, self.agents, paths):
            self.renderer.line(text, "magenta")
        await self._keep_agent()

    async def _keep_agent(self) -> None:
        gone = self.session.agent
        if gone and gone not in self.agents:
            self.renderer.line(f"agent {gone} is gone: {_DEFAULT} answers from here on", "yellow")
            await self._hand_over("")

    async def _hand_over(self, agent: str) -> None:
        changed = v1.Session(session_id=self.session.session_id, agent=agent)
        self.session = (await self.connection.call(calls.update_session(changed, ["agent"]))).session

    async def _agents(self, _: str) -> None:
        width = max(map(len, self.agents), default=0)
        for agent in self.agents.values():
            mark = "*" if agent.name == self.session.agent else " "
            self.renderer.line(f"{mark} {agent.name.ljust(width)}  {shorten(agent.description, 80)}")
        if not self.agents:
            self.renderer.line(f"this project has no agents of its own: {_DEFAULT} answers", "dim")

    async def _agent(self, name: str) -> None:
        await self._hand_over(name)

    async def _sessions(self, _: str) -> None:
        request = v1.ListSessionsRequest(page_size=_SHOWN_SESSIONS)
        call = calls.Call[v1.ListSessionsResponse]("sessions", "ListSessions", request)
        for session in (await self.connection.call(call)).sessions:
            mark = "*" if session.session_id == self.session.session_id else " "
            known = session.title or " ".join(f"{k}={v}" for k, v in sorted(session.metadata.items()))
            self.renderer.line(f"{mark} {session.session_id}  {session.latest_sequence} events  {known}")

    async def _session(self, session_id: str) -> Step | None:
        if not session_id:
            self.renderer.line(f"this is session {self.session.session_id}")
            return None
        return await self._switch(Opening(session=session_id))

    async def _new(self, _: str) -> Step:
        return await self._switch(Opening(harness=self.session.harness, agent=self.session.agent, new=True))

    async def _switch(self, opening: Opening) -> Step:
        self.session = await opening.open(self.connection)
        self.agents = await self._list_agents()
        self._greet()
        return Step.REOPEN


def difference(before: dict[str, v1.Agent], after: dict[str, v1.Agent], paths: set[str]) -> list[str]:
    """Return, a line each, which agents were added, changed and removed; `paths` are the files that changed."""
    added = [name for name in after if name not in before]
    # The prompt is no part of the message: a changed file is a changed agent.
    changed = [name for name in after if name in before and (after[name] != before[name] or after[name].path in paths)]
    removed = [name for name in before if name not in after]
    return (
        [f"agent {name} added" for name in added]
        + [f"agent {name} changed: the next turn uses it" for name in changed]
        + [f"agent {name} removed" for name in removed]
    )
