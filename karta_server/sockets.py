"""Unix sockets of a server process: private, and never in the way of the next one."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from karta import v1
from karta_server.errors import KartaError

_CONNECT_SECONDS = 1.0


@contextlib.contextmanager
def private_folder(folder: Path) -> Iterator[None]:
    """Make a folder that only its owner can enter, and remove it afterwards if it is empty then.

    Raises KartaError when somebody else has made it.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        message = f"{folder} must be a folder of yours that nobody else can enter: remove it, or use another --state."
        raise KartaError(v1.ERROR_REASON_CONFIG_INVALID, message, setting="state")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def private_umask() -> Iterator[None]:
    """Make what is created meanwhile, sockets above all, accessible to the owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody serves any more; leave what is no socket.

    Raises KartaError when somebody serves it: grpc would silently take it over.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    message = f"Another program serves on {path}: stop it, or choose another --listen."
    raise KartaError(v1.ERROR_REASON_CONFIG_INVALID, message, setting="listen")
