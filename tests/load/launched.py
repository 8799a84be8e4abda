"""Servers of launcher.py, and what the operating system says about a process."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher.py")
END_SECONDS = 20


class Launched:
    """A running launcher."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self._process = process
        self.address = address

    def ask(self, question: str) -> dict[str, float]:
        """Return the answer to `lag` or `counts`; a server that does not answer runs into the test's time-out."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer


@contextlib.contextmanager
def launched(project: Path, environment: dict[str, str], *options: str) -> Iterator[Launched]:
    log = project.parent / "launched.log"
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, str(LAUNCHER), str(project), *options],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdin
    assert process.stdout
    try:
        ready = process.stdout.readline().split()
        assert ready[:1] == ["READY"], log.read_text()[-3000:]
        yield Launched(process, ready[1])
        process.stdin.close()
        assert process.wait(END_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(END_SECONDS)
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()


def memory_mib(pid: int, field: str = "VmRSS") -> float:
    """Return the resident memory of a process; VmHWM is its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
