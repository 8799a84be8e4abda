import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from karta_server.harness.launcher import write_launcher

SHELL = Path("/bin/sh")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    return write_launcher(tmp_path / "state", SHELL, ["MARK", "PATH", "UNSET"])


def start(launcher: Path, mark: Path, script: str) -> subprocess.Popen[str]:
    environment = {"MARK": str(mark), "SECRET": "x", "PATH": os.environ["PATH"]}
    pipe = subprocess.PIPE
    return subprocess.Popen([launcher, "-c", script], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def marked(mark: Path) -> list[str]:
    """The command lines of the processes that have the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"MARK={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def wait_until(reached: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_program_gets_its_arguments_pipes_and_named_variables_only(launcher: Path, tmp_path: Path) -> None:
    with start(launcher, tmp_path, 'read line; echo "got $line"; env; echo problem >&2; exit 3') as process:
        output, errors = process.communicate("input\n", timeout=10)

    lines = output.splitlines()
    assert lines[0] == "got input"
    assert f"MARK={tmp_path}" in lines
    assert not any(line.startswith(("SECRET", "UNSET")) for line in lines)
    assert errors == "problem\n"
    assert process.returncode == 3


def test_a_signal_that_ends_the_program_is_a_failing_exit_code(launcher: Path, tmp_path: Path) -> None:
    with start(launcher, tmp_path, "kill -9 $$") as process:
        assert process.wait(10) == 128 + signal.SIGKILL


def test_a_program_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    launcher = write_launcher(tmp_path / "state", tmp_path / "missing", [])
    done = subprocess.run([launcher], capture_output=True, text=True, timeout=10, check=False)

    assert done.returncode == 127
    assert "missing: No such file or directory" in done.stderr


def test_the_program_does_not_inherit_ignored_signals(launcher: Path, tmp_path: Path) -> None:
    # With SIGPIPE ignored, yes would complain about its closed pipe on stderr.
    with start(launcher, tmp_path, "yes | head -n 1") as process:
        output, errors = process.communicate(timeout=10)
    assert (output, errors) == ("y\n", "")


@linux_only
def test_what_the_program_leaves_running_ends_with_it(launcher: Path, tmp_path: Path) -> None:
    with start(launcher, tmp_path, "setsid sleep 71 & (setsid sleep 72 &) ; exit 0") as process:
        assert process.wait(10) == 0
    assert marked(tmp_path) == []


@linux_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program_and_all_that_came_from_it(launcher: Path, tmp_path: Path, number: int) -> None:
    script = "trap '' TERM HUP; setsid sleep 73 & (setsid sleep 74 &) ; while :; do sleep 75; done"
    with start(launcher, tmp_path, script) as process:
        wait_until(lambda: all(any(line.startswith(f"sleep {n}") for line in marked(tmp_path)) for n in (73, 74, 75)))
        process.send_signal(number)
        assert process.wait(10) == 128 + signal.SIGKILL
    assert marked(tmp_path) == []


def test_sigint_is_for_the_program_to_decide(launcher: Path, tmp_path: Path) -> None:
    with start(
        launcher, tmp_path, "trap 'echo heard; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 5
        assert process.stdout.read() == "heard\n"


@linux_only
def test_all_ends_when_the_parent_is_killed(launcher: Path, tmp_path: Path) -> None:
    # The parent's pipe to stdin stays open in this process: its death alone has to do.
    reader, writer = os.pipe()
    parent = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([{str(launcher)!r}, '-c', 'setsid sleep 76 & exec sleep 77'], stdin={reader})\n"
        "time.sleep(60)"
    )
    environment = {"MARK": str(tmp_path), "PATH": os.environ["PATH"]}
    with subprocess.Popen([sys.executable, "-c", parent], env=environment, pass_fds=[reader]) as process:
        wait_until(lambda: all(any(line.startswith(f"sleep {n}") for line in marked(tmp_path)) for n in (76, 77)))
        process.kill()
    try:
        wait_until(lambda: not marked(tmp_path))
    finally:
        os.close(reader)
        os.close(writer)


@linux_only
def test_the_program_dies_with_its_keeper(launcher: Path, tmp_path: Path) -> None:
    with start(launcher, tmp_path, "exec sleep 78") as process:
        wait_until(lambda: any(line.startswith("sleep 78") for line in marked(tmp_path)))
        process.kill()
    wait_until(lambda: not marked(tmp_path))


def test_a_launcher_is_written_once_and_holds_no_values(tmp_path: Path) -> None:
    first = write_launcher(tmp_path / "a" / "b", SHELL, ["B", "A", "A"])
    written = first.stat().st_mtime_ns

    assert write_launcher(tmp_path / "a" / "b", SHELL, ["A", "B"]) == first
    assert first.stat().st_mtime_ns == written
    assert first.stat().st_mode & 0o777 == 0o700
    assert first.parent.stat().st_mode & 0o777 == 0o700
    assert list(first.parent.iterdir()) == [first]
    assert " A,B /bin/sh " in first.read_text()
    assert write_launcher(tmp_path / "a" / "b", SHELL, ["A"]) != first
