"""The real Claude Code on the offline model, in a folder of its own."""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from karta import v1
from karta_server.harness.claude_code import ClaudeCodeAdapter
from karta_server.harness.contract import HarnessSession, HarnessSettings, Prompt
from karta_server.testing.offline_model import OfflineModel, offline_environment

Watch = Callable[[v1.Event], Awaitable[None]]


def script(*calls: list[dict[str, Any]]) -> str:
    return f"SCRIPT:{json.dumps(calls)}END"


def bash(command: str, **more: Any) -> dict[str, Any]:
    return {"tool": "Bash", "input": {"command": command, **more}}


class Claude:
    """A project, its harness, and what was opened of it."""

    def __init__(self, root: Path, model: OfflineModel) -> None:
        self.root = root
        self.model = model
        self.project = root / "project"
        self.home = root / "home"
        self.project.mkdir()
        self._sessions: list[HarnessSession] = []

    def settings(self, **more: Any) -> HarnessSettings:
        environment = offline_environment(self.home, self.model.url)
        return HarnessSettings(self.project, self.root / "state", environment, **more)

    def adapter(self) -> ClaudeCodeAdapter:
        return ClaudeCodeAdapter(self.settings())

    async def open(self, memory: bytes = b"", session_id: str = "") -> HarnessSession:
        session = await self.adapter().open(session_id or str(uuid.uuid4()), memory)
        self._sessions.append(session)
        return session

    async def close(self) -> None:
        for session in self._sessions:
            await session.close()

    def agent(self, name: str, prompt: str, **frontmatter: str) -> None:
        folder = self.project / ".claude" / "agents"
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"name": name, "description": f"the {name}", **frontmatter}
        lines = "".join(f"{key}: {value}\n" for key, value in fields.items())
        (folder / f"{name}.md").write_text(f"---\n{lines}---\n{prompt}\n")

    def processes(self) -> dict[int, str]:
        """The processes that have this project's HOME in their environment, with their programs."""
        found = {}
        mark = f"HOME={self.home}".encode()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def program_pid(self) -> int:
        """The process id of the one Claude Code that runs."""
        (pid,) = (pid for pid in self.processes() if Path(f"/proc/{pid}/exe").readlink().name == "claude")
        return pid

    def program_environment(self) -> str:
        return Path(f"/proc/{self.program_pid()}/environ").read_text()

    async def wait_for_processes(self, wanted: Callable[[dict[int, str]], bool]) -> None:
        await _wait(lambda: wanted(self.processes()), self.processes)

    async def wait_for_requests(self, count: int) -> None:
        """Wait until the model was called that often."""
        await _wait(lambda: len(self.model.requests) >= count, lambda: len(self.model.requests))


async def _wait(reached: Callable[[], bool], tell: Callable[[], object], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, tell()
        await asyncio.sleep(0.02)


async def run(session: HarnessSession, text: str, agent: str = "", watch: Watch | None = None) -> list[v1.Event]:
    """Run a turn and return its events; `watch` sees each as it comes, and answers what is asked."""
    events = []
    async for event in session.run_turn(Prompt(str(uuid.uuid4()), text, agent)):
        events.append(event)
        assert watch is not None or not event.HasField("input_required"), f"nobody answers {event}"
        if watch is not None:
            await watch(event)
    return events


def answering(session: HarnessSession, *responses: v1.InputResponse) -> Watch:
    """Answer one request after another."""
    left = list(responses)

    async def watch(event: v1.Event) -> None:
        if event.HasField("input_required"):
            request = event.input_required.input_request
            request.state = v1.INPUT_STATE_ANSWERED
            request.response.CopyFrom(left.pop(0))
            await session.answer(request)

    return watch


def once_running(claude: Claude, session: HarnessSession, command: str, act: Callable[[], Awaitable[None]]) -> Watch:
    """Allow what is asked, wait until the command runs, and then act."""
    answer = answering(session, allow())

    async def watch(event: v1.Event) -> None:
        await answer(event)
        if event.HasField("input_required"):
            await claude.wait_for_processes(lambda now: any(command in line for line in now.values()))
            await act()

    return watch


def allow(scope: v1.AllowScope.ValueType = v1.ALLOW_SCOPE_ONCE, **fields: Any) -> v1.InputResponse:
    return v1.InputResponse(allow=v1.Allow(scope=scope, **fields))


def deny(message: str = "", **fields: Any) -> v1.InputResponse:
    return v1.InputResponse(deny=v1.Deny(message=message, **fields))


def kinds(events: list[v1.Event]) -> list[str]:
    """The kinds, one for a run of the same."""
    names = [str(event.WhichOneof("kind")) for event in events]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


def said(events: list[v1.Event]) -> str:
    return "".join(event.text.text for event in events)


def only(events: list[v1.Event], kind: str) -> Any:
    """The one event of a kind."""
    (found,) = every(events, kind)
    return found


def every(events: list[v1.Event], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.HasField(kind)]


def finished(events: list[v1.Event]) -> v1.TurnFinished:
    assert events[-1].HasField("turn_finished"), events[-1]
    return events[-1].turn_finished
