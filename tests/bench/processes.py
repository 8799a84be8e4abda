"""Servers and clients as processes of their own, and what they cost."""

import contextlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
ROUND_SECONDS = 240.0
_STOP_SECONDS = 10.0
# What a process may have of the environment that the suite runs in.
_ALLOWED = re.compile(r"PATH|LANG|LC_\w+|TZ|USER|LOGNAME|TMPDIR|SSL_CERT_\w+")
_READY = re.compile(r"(?:READY|karta-runtime serving on|offline model at) (\S+)")


class BenchError(Exception):
    """A benchmark could not run, or a check of what it received failed."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process: a home of its own, and nothing of the machine's configuration."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if _ALLOWED.fullmatch(name)}
    return (
        kept
        | {"HOME": str(home), "CLAUDE_CONFIG_DIR": str(home / ".claude"), "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
        | more
    )


def cpu_seconds_of(command: Sequence[str], variables: Mapping[str, str]) -> float:
    """Run a command to its end and return its CPU time, user and system."""
    before = _ended_cpu_seconds()
    try:
        done = subprocess.run(
            command, env=dict(variables), cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]} took longer than {START_SECONDS:g} s") from error
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return _ended_cpu_seconds() - before


def _ended_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Process:
    """A child that talks in lines. Killed at the latest by `close`."""

    def __init__(self, command: Sequence[str], folder: Path, variables: Mapping[str, str], name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._log = folder / f"{name}.log"
        self._lines = b""
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                list(command),
                env=dict(variables),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self.popen.pid

    def cpu_seconds(self) -> float:
        """CPU time of the whole process until now, user and system, all threads."""
        # The clock of another process: CPUCLOCK_SCHED of its number.
        return time.clock_gettime((~self.pid << 3) | 2)

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def say(self, line: str) -> None:
        """Send a line."""
        assert self.popen.stdin
        try:
            self.popen.stdin.write(line.encode() + b"\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"{self.name} ended:\n{self.tail()}") from None

    def line(self, seconds: float) -> str:
        """Return the next line it prints."""
        assert self.popen.stdout
        deadline = time.monotonic() + seconds
        while b"\n" not in self._lines:
            ready, _, _ = select.select([self.popen.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BenchError(f"{self.name} said nothing for {seconds:g} s:\n{self.tail()}")
            data = os.read(self.popen.stdout.fileno(), 1 << 20)
            if not data:
                raise BenchError(f"{self.name} ended:\n{self.tail()}")
            self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode()

    def tail(self) -> str:
        """What it last wrote to its standard error."""
        return self._log.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """Ask it to end, and kill it and all its children when it does not."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert pipe
                pipe.close()


class Server(Process):
    """A server; `address` is where."""

    def __init__(self, command: Sequence[str], folder: Path, variables: Mapping[str, str], name: str) -> None:
        super().__init__(command, folder, variables, name)
        try:
            self.address = self._ready()
        except BaseException:
            self.close()
            raise

    def _ready(self) -> str:
        line = self.line(START_SECONDS)
        match = _READY.match(line)
        if not match:
            raise BenchError(f"{self.name} did not say that it serves, but {line!r}")
        return match[1]


class Client(Process):
    """A scenario in a process of its own."""

    def __init__(self, scenario: str, folder: Path, **parameters: Any) -> None:
        command = [sys.executable, "-m", "tests.bench.clients", scenario, json.dumps(parameters)]
        super().__init__(command, folder, environment(folder / "home"), f"client-{scenario.replace(':', '-')}")
        try:
            self._answer(ROUND_SECONDS)
        except BaseException:
            self.close()
            raise

    def run(self) -> dict[str, Any]:
        """Run the scenario once and return what it measured."""
        self.say("run")
        return self._answer(ROUND_SECONDS)

    def _answer(self, seconds: float) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.line(seconds))
        if "error" in answer:
            raise BenchError(f"{self.name}: {answer['error']}\n{self.tail()}")
        return answer
