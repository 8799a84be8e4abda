"""Programs that use projects, plain servers, and a look at what is left behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 15.0


def script(*steps: list[dict[str, Any]]) -> str:
    return f"SCRIPT:{json.dumps(steps)}END"


def processes_of(project: Path) -> list[int]:
    """The server processes of a project, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"dev-serve" in words and os.fsencode(project) in words:
            found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.02)


def server_pid(project: Path) -> int:
    pid: int = json.loads((project / ".karta" / "server.json").read_text())["pid"]
    return pid


class Programs:
    """Python programs that run beside the test."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._running: list[subprocess.Popen[str]] = []

    def start(self, code: str, project: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", code]
        program = subprocess.Popen(
            command,
            cwd=project,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(program)
        return program

    def run(self, code: str, project: Path) -> str:
        return self.finish(self.start(code, project))

    def finish(self, program: subprocess.Popen[str]) -> str:
        out, errors = program.communicate(timeout=40)
        assert (program.returncode, errors) == (0, ""), f"exit {program.returncode}: {errors}"
        return out

    def close(self) -> None:
        for program in self._running:
            program.kill()
            program.communicate()


class PlainServer:
    """A dev-serve on a project, that can be killed and started again at the same address."""

    def __init__(self, project: Path, environment: dict[str, str]) -> None:
        self.project = project
        self._environment = environment
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "karta_server.cli", "dev-serve", str(self.project)]
        with (self.project / "plain.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--listen", self.address], env=self._environment, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self.project / "plain.log").read_text()
        self.address = json.loads((self.project / ".karta" / "server.json").read_text())["address"]

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._end()

    def stop(self) -> None:
        self._process.terminate()
        self._end()

    def _end(self) -> None:
        self._process.wait(PATIENCE_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()
