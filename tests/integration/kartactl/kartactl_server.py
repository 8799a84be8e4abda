"""A real server as a process beside kartactl."""

import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
