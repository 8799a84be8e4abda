"""A program on a real pseudo-terminal: type, and wait for what it shows."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

_SEQUENCES = re.compile(r"\x1b\][^\x07]*\x07|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\^_=>]|\r|\x07")
# Makes the terminal the controlling one, so that Ctrl-C is a signal where the program does not read it as a key.
_ATTACH = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])"
)
WAIT_SECONDS = 30.0

CTRL_C = "\x03"
CTRL_D = "\x04"
ENTER = "\r"


class TerminalProgram:
    """A Python module as a program; `shown` is all that it wrote, without control sequences."""

    def __init__(self, *command: str, cwd: Path, environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        extra = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ATTACH, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=environment | extra,
            start_new_session=True,
        )
        os.close(slave)
        self.raw = b""
        self._place = 0

    @property
    def shown(self) -> str:
        return _SEQUENCES.sub("", self.raw.decode(errors="replace"))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Wait until the text is shown, behind what was expected before; return what came up to its end."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := self.shown.find(text, self._place)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} was not shown in:\n{self.shown[self._place :]}")
        before, self._place = self._place, found + len(text)
        return self.shown[before : self._place]

    def end(self) -> int:
        """Wait until the program has ended; return its exit code."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self._read(deadline):
            pass
        return self.process.wait(max(deadline - time.monotonic(), 0.1))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
        try:
            piece = os.read(self._master, 65536) if ready else b""
        except OSError:  # How Linux says that nobody has the other end any more.
            piece = b""
        self.raw += piece
        return bool(piece)


Start = Callable[..., TerminalProgram]


def write_agent(folder: Path, name: str, description: str) -> None:
    draft = folder / f".{name}.draft"
    draft.write_text(f"---\nname: {name}\ndescription: {description}\n---\nYou are {name}.\n")
    draft.replace(folder / f"{name}.md")
