"""The lock on a state directory: one server at a time."""

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from karta import v1
from karta_server.errors import KartaError

_held: set[int] = set()


class StateLock:
    """An exclusive lock on `<state>/lock`, which holds the process id of its holder.

    The kernel lets go of it when the process ends, however it ends; the file stays.
    Child processes do not have it, whether they exec or not.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, making the directory if need be. Raises KartaError STATE_DIRECTORY_IN_USE,
        or STORE_UNAVAILABLE when the directory cannot be written."""
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise (self._in_use(holder) if isinstance(error, BlockingIOError) else self._unusable(error)) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _held.add(descriptor)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor in _held:
            _held.remove(descriptor)
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _in_use(self, holder: str) -> KartaError:
        return KartaError(
            v1.ERROR_REASON_STATE_DIRECTORY_IN_USE,
            f"The state directory {self._state} is in use by the server with process id {holder or 'unknown'}. "
            "Connect to that server, stop it, or start this one with another --state directory.",
            state_directory=self._state,
            pid=holder or "unknown",
        )

    def _unusable(self, error: OSError) -> KartaError:
        return KartaError(
            v1.ERROR_REASON_STORE_UNAVAILABLE,
            f"The state directory {self._state} cannot be used: {error}. "
            "Make it writable, or choose another one with --state.",
        )


def _let_go_in_child() -> None:
    # A fork shares the lock with its parent: it would outlive the parent in the child. Closing the
    # child's descriptor, without unlocking, leaves it to the parent alone.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
