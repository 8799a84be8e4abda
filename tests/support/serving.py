"""Running karta-runtime as its users do."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LINE = re.compile(r"karta-runtime serving on (\S+) \(project (.+), harness (\w+)\)\n")


class Served:
    """A `dev-serve` that serves."""

    def __init__(self, process: "subprocess.Popen[str]", line: str) -> None:
        self.process = process
        match = LINE.fullmatch(line)
        assert match, line
        self.address, self.project, self.harness = match.groups()

    def end(self, number: int, timeout: float = 20) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


@contextlib.contextmanager
def dev_serve(project: Path, environment: dict[str, str], *options: str) -> Iterator[Served]:
    """Serve with the scripted harness; killed at the end if it still runs."""
    log = project.parent / "serve.log"
    command = [sys.executable, "-m", "karta_server.cli", "dev-serve", str(project), "--harness", "scripted", *options]
    with log.open("a") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Served(process, line)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        assert process.stdout
        process.stdout.close()
