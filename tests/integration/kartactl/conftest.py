"""A real server on the scripted harness, and kartactl as a process beside it."""

import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Kartactl = Callable[..., "subprocess.CompletedProcess[str]"]
_SERVING = re.compile(r"serving on (\S+)")
_START_SECONDS = 20


class ServerProcess:
    """karta-runtime dev-serve in a project; can be killed and started again on the same address."""

    def __init__(self, project: Path, environment: dict[str, str]) -> None:
        self._project = project
        self._environment = environment
        self.address = "127.0.0.1:0"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "karta_server.cli", "dev-serve", str(self._project)]
        with (self._project / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--listen", self.address, "--harness", "scripted"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], _START_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        found = _SERVING.search(line)
        assert found, f"{line!r}: {(self._project / 'server.log').read_text()}"
        self.address = found[1]

    def end(self, how: signal.Signals) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(20)
        if self.process and self.process.stdout:
            self.process.stdout.close()


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
