"""Runs one harness process and leaves nothing of it behind.

    python -ISE keeper.py NAME,NAME,... PROGRAM [ARGUMENT ...]

The program gets the named variables of the environment and no others, the
keeper's own stdin, stdout and stderr, and a session of its own. The keeper
ends with the program's exit code, or 128 plus the number of the signal that
ended it. It kills the program and every process that came from it

- when the program ended (what it left running),
- on SIGTERM or SIGHUP, which the program gets first and has a moment to obey,
- when its own parent dies, by whatever death: on Linux at once, elsewhere some
  time after the parent's end of stdin is gone.

A file of its own without imports from Karta: it starts once for every harness
process, so it has to start fast, and nothing of the server may reach it. Where
there is no /proc, processes that left the program's session are not found.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

TERMINATE_SECONDS = 2.0
"""How long the program may take to obey a SIGTERM."""
HANGUP_SECONDS = 15.0
"""How long it may take to end when its stdin has ended: longer than whoever closed it waits on its own."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    """Run the program of the command line; return the exit code."""
    names, program = sys.argv[1].split(","), sys.argv[2:]
    wakeup = _catch_signals()
    # Away from the terminal's process group: a Ctrl-C there is for the server.
    with contextlib.suppress(OSError):
        os.setsid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    environment = {name: os.environ[name] for name in names if name in os.environ}
    child = _start(program, environment)
    try:
        return _wait(child, wakeup)
    finally:
        _kill_descendants(child)


def _catch_signals() -> int:
    """Make signals readable from a pipe, so that one poll waits for everything."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    for number in (*_FORWARDED, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _start(program: list[str], environment: dict[str, str]) -> int:
    keeper = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Python ignores these; a program that inherits that never dies of a closed pipe.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if os.getppid() == keeper:
            os.execve(program[0], program, environment)  # noqa: S606 no shell is wanted
    except OSError as error:
        os.write(2, f"cannot run {program[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _wait(child: int, wakeup: int) -> int:
    """Wait until the child ends, or has to; return the exit code."""
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    poll.register(0, 0)  # POLLHUP alone: the bytes on stdin are the program's
    deadline = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if left == 0:
            return 128 + signal.SIGKILL
        for descriptor, _ in poll.poll(None if left is None else left * 1000):
            if descriptor == 0:
                poll.unregister(0)
                deadline = _sooner(deadline, HANGUP_SECONDS)
                continue
            signals = os.read(wakeup, 4096)
            for number in signals:
                if number in _FORWARDED:
                    _kill(child, number)
                if number in (signal.SIGTERM, signal.SIGHUP):
                    deadline = _sooner(deadline, TERMINATE_SECONDS)
        code = _reap(child)
        if code is not None:
            return code


def _sooner(deadline: float | None, seconds: float) -> float:
    new = time.monotonic() + seconds
    return new if deadline is None else min(deadline, new)


def _reap(child: int) -> int | None:
    """Reap whatever ended; return the child's exit code when it is among it."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
    return code if code is None or code >= 0 else 128 - code


def _kill_descendants(child: int) -> None:
    # As a subreaper the keeper inherits every orphan, so this ends when nothing is left; a process
    # that forks while it is being looked for is found in the next round.
    with contextlib.suppress(ChildProcessError):
        while True:
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
            for pid in _descendants(os.getpid()):
                _kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _descendants(ancestor: int) -> list[int]:
    parents = _parents()
    found = [ancestor]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]


def _parents() -> dict[int, int]:
    """Return the parent of each process, where /proc tells."""
    parents = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208 pathlib costs more than the rest of the start
            if name.isdecimal():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
                    # The second field is the program's name in parentheses; it may hold anything.
                    parents[int(name)] = int(stat.read().rpartition(b")")[2].split()[1])
    return parents


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
