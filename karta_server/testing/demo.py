"""`make demo`: the main job, with the real Claude Code.

Starts a server on a folder of its own, holds a conversation over the bidi
stream with an approval in it, goes on with it, restarts the server, and finds
the session again. The model is scripted and everything stays in a temporary
folder, unless MODEL=real asks for the developer's own login or key.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import NamedTuple

from karta import v1
from karta_client.connection import Connection, open_connection
from karta_client.terminal import Renderer, make_console, usage_line
from karta_server.testing.offline_model import OfflineModel, offline_environment

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_TURN_SECONDS = 300.0
_METADATA = {"demo": "main-job"}
_AGENT = """---
name: poet
description: Answers in verse.
---
You answer every question in two lines that rhyme.
"""


class Line(NamedTuple):
    """Something that the demo's user says."""

    text: str
    script: list[list[dict[str, object]]] | None = None
    """What the scripted model does; None lets it echo, with the number of messages that it remembers."""


_LINES = (
    Line(
        "Write a file hello.txt that says hello, then tell me that you are done.",
        [
            [
                {"think": "A small task: one file."},
                {"text": "I will write the file with the Write tool.\n"},
                {"tool": "Write", "input": {"file_path": "hello.txt", "content": "Hello from Claude Code\n"}},
            ],
            [{"text": "Done: hello.txt is there."}],
        ],
    ),
    Line("What was the first thing that I asked you to do?"),
    Line("And now, after the restart: do you still know?"),
)


class Demo:
    """One run of the demo in a folder."""

    def __init__(self, folder: Path, model: OfflineModel | None) -> None:
        self._console = make_console()
        self._project = folder / "project"
        self._home = folder / "home"
        self._model = model
        self._turns: list[v1.Turn] = []

    async def run(self) -> bool:
        """Show everything; return whether all of it was as it has to be."""
        self._prepare()
        async with self._served("Starting a server") as connection:
            session = await self._session(connection)
            self._say(f"Session {session.session_id}, made with metadata {json.dumps(_METADATA)}.")
            await self._turn(connection, session, _LINES[0])
            await self._turn(connection, session, _LINES[1])
        async with self._served("Starting the server again, as a new process") as connection:
            found = await self._session(connection)
            self._say(f"Session {found.session_id}, found by its metadata: the same one.")
            await self._turn(connection, found, _LINES[2])
            return found.session_id == session.session_id and await self._summary(connection, found)

    def _prepare(self) -> None:
        agents = self._project / ".claude" / "agents"
        agents.mkdir(parents=True)
        (agents / "poet.md").write_text(_AGENT)
        if self._model is None:
            self._say("The model is the real one: your own login or key is used, and pays.")
        else:
            self._say("The model is SCRIPTED and runs on this machine; Claude Code is the real one.")
            self._say("No credential of this machine is read, and nothing leaves it.")
        self._say(f"Project: {self._project}")

    @contextlib.asynccontextmanager
    async def _served(self, what: str) -> AsyncGenerator[Connection, None]:
        self._heading(f"{what}: karta-runtime dev-serve")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "karta_server.cli", "dev-serve", str(self._project)),
            *("--listen", "127.0.0.1:0", "--harness", "claude_code", "--log-level", "warning"),
            env=self._environment(),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), _START_SECONDS)).decode().strip()
            if not line:
                raise SystemExit("The server did not start; its message is above.")
            self._say(line)
            async with await open_connection(line.split(" on ")[1].split()[0]) as connection:
                yield connection
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)

    def _environment(self) -> Mapping[str, str] | None:
        return offline_environment(self._home, self._model.url) if self._model is not None else None

    async def _session(self, connection: Connection) -> v1.Session:
        request = v1.CreateSessionRequest(metadata=_METADATA, reuse=v1.SESSION_REUSE_LATEST)
        return (await connection.sessions.CreateSession(request)).session

    async def _turn(self, connection: Connection, session: v1.Session, line: Line) -> None:
        """Hold one turn over the bidi stream, approving what the agent asks."""
        self._heading(f"You: {line.text}")
        commands: asyncio.Queue[v1.ConverseRequest | None] = asyncio.Queue()
        commands.put_nowait(v1.ConverseRequest(command_id="1", open=v1.OpenConversation(session_id=session.session_id)))
        commands.put_nowait(v1.ConverseRequest(command_id="2", start_turn=self._start(line)))
        renderer = Renderer(self._console)
        async with asyncio.timeout(_TURN_SECONDS):
            async for response in connection.turns.Converse(_taken(commands)):
                if response.command_result.HasField("error"):
                    raise SystemExit(f"The server refused: {response.command_result.error.message}")
                for event in response.frame.events:
                    if not event.HasField("message_received"):
                        renderer.event(event)
                    if event.HasField("input_required"):
                        commands.put_nowait(self._approval(event.input_required.input_request))
                    if event.HasField("turn_finished"):
                        commands.put_nowait(None)
                        await self._keep(connection, event)

    def _start(self, line: Line) -> v1.StartTurnRequest:
        text = line.text
        if self._model is not None and line.script is not None:
            script = json.dumps(line.script).replace('"hello.txt"', json.dumps(str(self._project / "hello.txt")))
            text += f" SCRIPT:{script}END"
        return v1.StartTurnRequest(message=v1.Message(parts=[v1.Part(text=text)]))

    def _approval(self, request: v1.InputRequest) -> v1.ConverseRequest:
        self._say(f"  {request.tool_name} waits for an answer; it goes back over the same stream: allow once.")
        allow = v1.InputResponse(allow=v1.Allow(scope=v1.ALLOW_SCOPE_ONCE))
        respond = v1.RespondToInputRequest(input_request_id=request.input_request_id, response=allow)
        return v1.ConverseRequest(command_id="3", respond=respond)

    async def _keep(self, connection: Connection, finished: v1.Event) -> None:
        request = v1.GetTurnRequest(session_id=finished.session_id, turn_id=finished.turn_id)
        self._turns.append((await connection.turns.GetTurn(request)).turn)

    async def _summary(self, connection: Connection, session: v1.Session) -> bool:
        self._heading("Summary")
        request = v1.WatchSessionRequest(session_id=session.session_id)
        sequences = [
            event.sequence async for frame in connection.sessions.WatchSession(request) for event in frame.events
        ]
        gap_free = sequences == list(range(1, len(sequences) + 1))
        session = (await connection.sessions.GetSession(v1.GetSessionRequest(session_id=session.session_id))).session
        for turn in self._turns:
            self._say(
                f"turn {turn.turn_id}  {v1.TurnState.Name(turn.state).removeprefix('TURN_STATE_').lower()}  "
                f"events {turn.first_sequence}..{turn.last_sequence}  {usage_line(turn.usage)}"
            )
        written = self._project / "hello.txt"
        self._say(f"{len(sequences)} events, sequences 1..{sequences[-1]}, {'no gap' if gap_free else 'WITH GAPS'}")
        self._say(f"usage of the session: {usage_line(session.usage)}")
        self._say(f"hello.txt: {written.read_text().strip() if written.exists() else 'was NOT written'}")
        completed = all(turn.state == v1.TURN_STATE_COMPLETED for turn in self._turns)
        return gap_free and completed and written.exists() and self._remembered()

    def _remembered(self) -> bool:
        """Say whether the last model request, made after the restart, held the first turn."""
        if self._model is None:
            return True
        asked = json.dumps(self._model.requests[-1]["messages"])
        remembered = _LINES[0].text in asked
        verb = "holds" if remembered else "does NOT hold"
        self._say(f"the last model request {verb} the first turn, from before the restart")
        return remembered

    def _heading(self, text: str) -> None:
        self._console.print()
        self._console.print(text, style="bold", markup=False, highlight=False)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


async def _taken(commands: "asyncio.Queue[v1.ConverseRequest | None]") -> AsyncIterator[v1.ConverseRequest]:
    while (command := await commands.get()) is not None:
        yield command


async def _main(real: bool) -> int:
    with tempfile.TemporaryDirectory(prefix="karta-demo-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            model = None if real else await stack.enter_async_context(OfflineModel())
            good = await Demo(Path(folder), model).run()
    return 0 if good else 1


def main() -> int:
    """Run the demo; the exit code is 0 when all that it shows was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("scripted", "real"), default="scripted")
    return asyncio.run(_main(parser.parse_args().model == "real"))


if __name__ == "__main__":
    sys.exit(main())
