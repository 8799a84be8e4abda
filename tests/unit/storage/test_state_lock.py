"""The lock on a state directory, between real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.lock import StateLock

HOLD = """
import sys
from pathlib import Path
from karta_server.storage.lock import StateLock
with StateLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(state: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refused(state: Path) -> KartaError:
    with pytest.raises(KartaError) as caught:
        StateLock(state).acquire()
    assert caught.value.reason == v1.ERROR_REASON_STATE_DIRECTORY_IN_USE
    return caught.value


def test_a_second_process_is_told_who_has_it(tmp_path: Path, environment: dict[str, str]):
    with holder(tmp_path / "state", environment) as process:
        error = refused(tmp_path / "state")
        assert error.metadata == {"state_directory": str(tmp_path / "state"), "pid": str(process.pid)}
        assert str(process.pid) in error.message
        assert "--state" in error.message


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_process(tmp_path: Path, environment: dict[str, str], how: signal.Signals):
    with holder(tmp_path, environment) as process:
        process.send_signal(how)
        process.wait()
        with StateLock(tmp_path):
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_it_can_be_released_and_taken_again(tmp_path: Path, environment: dict[str, str]):
    lock = StateLock(tmp_path)
    lock.acquire()
    refused(tmp_path)
    lock.release()
    lock.release()
    with holder(tmp_path, environment):
        refused(tmp_path)
    lock.acquire()
    lock.release()


def test_a_program_that_is_started_does_not_have_it(tmp_path: Path):
    lock = StateLock(tmp_path)
    lock.acquire()
    command = [sys.executable, "-c", "print('started', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        lock.release()
        with StateLock(tmp_path):
            pass
        child.kill()


def test_a_fork_does_not_have_it(tmp_path: Path):
    """Were it shared, it would outlive the parent in the child; were it unlocked, the parent would lose it."""
    lock = StateLock(tmp_path)
    lock.acquire()
    done_read, done_write = os.pipe()
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done_write)
        lock.release()
        os.write(ready_write, b"x")
        os.read(done_read, 1)
        os._exit(0)
    os.close(done_read)
    os.read(ready_read, 1)
    try:
        refused(tmp_path)
        lock.release()
        with StateLock(tmp_path):
            pass
    finally:
        os.close(done_write)
        os.waitpid(child, 0)
        os.close(ready_read)
        os.close(ready_write)


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KartaError, match="file") as caught:
        StateLock(tmp_path / "file" / "state").acquire()
    assert caught.value.reason == v1.ERROR_REASON_STORE_UNAVAILABLE
