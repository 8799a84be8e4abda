"""A project on the scripted harness whose embedded server is ended with the test."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal_program import Start, TerminalProgram, write_agent


@pytest.fixture
def agents(project: Path) -> Path:
    """The folder of the project's agents."""
    (project / "karta.jsonc").write_text('{"harness": {"name": "scripted"}, "drain_seconds": 0}')
    folder = project / ".scripted" / "agents"
    folder.mkdir(parents=True)
    write_agent(folder, "billing", "Bills")
    return folder


@pytest.fixture
def start(project: Path, agents: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start a Python module on a terminal, in the project."""
    started: list[TerminalProgram] = []

    def run(*command: str) -> TerminalProgram:
        started.append(TerminalProgram(*command, cwd=project, environment=environment))
        return started[-1]

    yield run
    for program in started:
        program.close()
    _stop_server(project)


@pytest.fixture
def repl(start: Start) -> TerminalProgram:
    """The REPL, at its first prompt."""
    program = start("karta_server.cli", "dev")
    program.expect("/help lists what can be typed")
    program.expect(">")
    return program


def _stop_server(project: Path) -> None:
    """End the embedded server now; by itself it would wait two seconds for another user."""
    record = project / ".karta" / "server.json"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(json.loads(record.read_text())["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 15
    while record.exists():
        assert time.monotonic() < deadline, f"the server of {project} did not end"
        time.sleep(0.05)
