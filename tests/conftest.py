"""What holds for every test: nothing of the machine gets in, and nothing is left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# What tests may see of the environment that they were started in.
_ALLOWED = re.compile(r"PATH|LANG|LC_\w+|TZ|USER|LOGNAME|VIRTUAL_ENV|PYTHON\w+|COVERAGE_\w+|PYTEST_\w+")
_FIXED = {
    "ANTHROPIC_API_KEY": "dummy",
    # Nobody listens there: a test that forgets its model server fails, and reaches no network.
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "dummy",
    "AWS_SECRET_ACCESS_KEY": "dummy",
    "AWS_EC2_METADATA_DISABLED": "true",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
    "NO_COLOR": "1",
    "SHELL": "/bin/sh",
    "TERM": "dumb",
}
_ENDING_SECONDS = 5.0
_SCRATCH = pytest.StashKey[Path]()
_LEFT = pytest.StashKey[list[str]]()

Completed = subprocess.CompletedProcess[str]
Run = Callable[..., Completed]


@pytest.fixture(autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of this test, with a home of its own; hand it to subprocesses."""
    for name, value in _homes(tmp_path_factory.mktemp("home")).items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run a Python module with arguments in the test's environment, for at most `timeout` seconds."""

    def start(
        module: str, *arguments: object, timeout: float = 30, **rest: object
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", module, *map(str, arguments)]
        options = {"env": environment, "capture_output": True, "text": True, "timeout": timeout} | rest
        return subprocess.run(command, check=False, **options)

    return start


def pytest_sessionstart(session: pytest.Session) -> None:
    """Isolate the whole run, for fixtures of a wider scope than a test too."""
    # Short, because Unix sockets lie below; of this run alone, because others run at the same time.
    scratch = Path(tempfile.mkdtemp(prefix="kt-"))
    session.config.stash[_SCRATCH] = scratch
    for name in list(os.environ):
        if not _ALLOWED.fullmatch(name):
            del os.environ[name]
    # Now, before TMPDIR changes: what tests write is kept for a look at it.
    session.config._tmp_path_factory.getbasetemp()
    home = scratch / "home"
    home.mkdir()
    os.environ |= _FIXED | _homes(home) | {"TMPDIR": str(scratch)}
    tempfile.tempdir = None


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run when it has left processes or folders behind."""
    scratch = session.config.stash[_SCRATCH]
    left = _left(scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    session.config.stash[_LEFT] = left
    if left and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_LEFT, []):
        terminalreporter.write_line(f"LEFT BEHIND: {line}", red=True)


def _homes(home: Path) -> dict[str, str]:
    folders = {f"XDG_{kind.upper()}_HOME": str(home / kind) for kind in ("config", "data", "state", "cache")}
    return {"HOME": str(home), "CLAUDE_CONFIG_DIR": str(home / ".claude"), **folders}


def _left(scratch: Path) -> list[str]:
    """What is still there after a while, since processes take a moment to end; processes are ended."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while ((processes := _processes(scratch)) or _folders(scratch)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    return [*(f"process {pid}: {line}" for pid, line in processes.items()), *map(str, _folders(scratch))]


def _folders(scratch: Path) -> list[Path]:
    return sorted(scratch.glob("karta-*"))


def _processes(scratch: Path) -> dict[int, str]:
    """Living processes that this run has started: its descendants, and those that have left its tree
    but, by their TMPDIR or HOME, still have its environment."""
    table = _table()
    return {
        pid: command
        for pid, (_, command) in table.items()
        if pid != os.getpid() and (_descends(pid, table) or _has_environment(pid, scratch))
    }


def _table() -> dict[int, tuple[int, str]]:
    """Parent and command of every process that is no zombie."""
    if not Path("/proc/self/stat").exists():
        return _table_of_ps()
    table: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in parentheses, may hold anything.
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if state != "Z":
            table[int(folder.name)] = int(parent), command
    return table


def _table_of_ps() -> dict[int, tuple[int, str]]:
    listing = subprocess.run(["ps", "-axo", "pid=,ppid=,stat=,command="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 3) for line in listing.stdout.splitlines()]
    return {
        int(pid): (int(parent), " ".join(command))
        for pid, parent, state, *command in rows
        if not state.startswith("Z") and not command[0].startswith("ps -axo")
    }


def _descends(pid: int, table: dict[int, tuple[int, str]]) -> bool:
    while pid in table:
        pid = table[pid][0]
        if pid == os.getpid():
            return True
    return False


def _has_environment(pid: int, scratch: Path) -> bool:
    try:
        return os.fsencode(scratch) in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
