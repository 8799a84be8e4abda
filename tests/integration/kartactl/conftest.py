"""A real server on the scripted harness, and kartactl as a process beside it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kartactl_server import Kartactl, ServerProcess


@pytest.fixture
def server(project: Path, environment: dict[str, str]) -> Iterator[ServerProcess]:
    agents = project / ".scripted" / "agents"
    agents.mkdir(parents=True)
    (agents / "billing.md").write_text("---\nname: billing\ndescription: Bills\n---\nYou bill.\n")
    (project / "karta.jsonc").write_text('{"drain_seconds": 0}')
    made = ServerProcess(project, environment)
    made.start()
    yield made
    made.end(signal.SIGTERM)


@pytest.fixture
def kartactl(server: ServerProcess, project: Path, environment: dict[str, str]) -> Kartactl:
    """Run kartactl against the server, and check its exit code (0 unless `code` says otherwise)."""

    def start(*args: str, code: int = 0, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "karta_client.cli", *args],
            env=environment | {"KARTA_TARGET": server.address},
            cwd=project,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done

    return start
