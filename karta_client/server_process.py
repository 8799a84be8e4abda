"""The process of an embedded server: started detached, watched until it serves, collected when it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from karta_client.errors import EmbeddedServerError

LOG_LIMIT_BYTES = 256 * 1024
_LOG_NAME = "server.log"
_TAIL_BYTES = 4096
_EXIT_IN_USE = 75
_END_LIMIT_SECONDS = 5.0

_children: set[subprocess.Popen[bytes]] = set()
_inherited: list[subprocess.Popen[bytes]] = []


def start(project: Path, state: Path, listen: Path, deadline: float) -> bool:
    """Start a server; true when it serves, false when another one has the state directory.

    `deadline` is a time of time.monotonic(). Raises EmbeddedServerError with
    the log, and OSError when there is no starting at all.
    """
    with open_log(state) as log:
        begin = log.tell()
        child = _spawn(project, state, listen, log)
    try:
        if _read_line(child, deadline):
            _reap_later(child)
            return True
        ending = f"ended with code {child.wait(_END_LIMIT_SECONDS)}"
    except (TimeoutError, subprocess.TimeoutExpired):
        ending = "did not start in time"
    finally:
        if child not in _children:
            _kill(child)
    if child.returncode == _EXIT_IN_USE:
        return False
    raise EmbeddedServerError(f"The embedded server of {project} {ending}.", log=tail(state, begin))


def open_log(state: Path) -> IO[bytes]:
    """Open the log at its end; emptied when it has grown large."""
    log = (state / _LOG_NAME).open("ab")
    if log.tell() > LOG_LIMIT_BYTES:
        log.truncate(0)
        log.seek(0)
    return log


def tail(state: Path, begin: int = 0) -> str:
    """Return the last lines of the log, of those behind `begin`; empty when there are none."""
    try:
        with (state / _LOG_NAME).open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(begin, size - _TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _spawn(project: Path, state: Path, listen: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    # -P: modules in the current folder must not take the place of installed ones.
    module = [sys.executable, "-P", "-m", "karta_server.cli"]
    return subprocess.Popen(
        [*module, "dev-serve", str(project), "--state", str(state), "--listen", f"unix:{listen}", "--embedded"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )


def _read_line(child: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for the line that says that the server serves; false when it ends without. Raises TimeoutError."""
    assert child.stdout is not None
    line = b""
    with child.stdout as output:
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            piece = os.read(output.fileno(), 4096)
            if not piece:
                return False
            line += piece
    return True


def _reap_later(child: subprocess.Popen[bytes]) -> None:
    """Collect the exit of a server whenever it ends, so that it leaves no zombie in a long-lived process."""

    def wait() -> None:
        child.wait()
        _children.discard(child)

    _children.add(child)
    threading.Thread(target=wait, name="karta-embedded-server", daemon=True).start()


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _forget_in_child() -> None:
    """After a fork: the servers are the parent's children."""
    _inherited.extend(_children)
    _children.clear()


os.register_at_fork(after_in_child=_forget_in_child)
