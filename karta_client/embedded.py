"""Zero configuration: the server of a project folder, joined when there is one and started otherwise.

A server that was started here listens on a hold socket besides: it ends when
nobody is connected to that any more. The connection is all that ties it to its
users, so it goes with the last of them however that one ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from karta_client import server_process
from karta_client.errors import EmbeddedServerError

_START_LIMIT_SECONDS = 30.0
_OTHER_LIMIT_SECONDS = 5.0  # For a server that another process starts, before a new try of our own.
_CONNECT_LIMIT_SECONDS = 5.0
_TRIES = 6
_SOCKET_PATH_LIMIT_BYTES = 100


class Record(NamedTuple):
    """What a server publishes about itself in server.json."""

    pid: int
    address: str
    hold: str | None


class EmbeddedServer:
    """This process's share in the server of a project. One for each state folder, shared by all its users.

    `address` is where the server listens; it may change in `ensure`.
    """

    def __init__(self, project: Path, state: Path) -> None:
        self.project = project
        self.state = state
        self.address = ""
        self.users = 0
        self._lock = threading.Lock()
        self._record: Record | None = None
        self._hold: socket.socket | None = None

    def ensure(self) -> None:
        """Make sure that a server serves the folder, and hold it. Blocks up to 30 s.

        Raises EmbeddedServerError.
        """
        with self._lock:
            if self._record is None or not self._is_alive(self._record):
                self.close()
                self._find()

    def close(self) -> None:
        """Let go of the server; idempotent."""
        self._record = None
        if self._hold is not None:
            self._hold.close()
            self._hold = None

    def _find(self) -> None:
        deadline = time.monotonic() + _START_LIMIT_SECONDS
        for _ in range(_TRIES):
            if self._join():
                return
            if self._start(deadline) and self._join():
                return
            if self._join_other(min(deadline, time.monotonic() + _OTHER_LIMIT_SECONDS)):
                return
            if time.monotonic() > deadline:
                break
        raise EmbeddedServerError(f"No server came up in {self.state}.", log=server_process.tail(self.state))

    def _join(self) -> bool:
        """Connect to the server that server.json names; false when there is none any more."""
        record = _read_record(self.state / "server.json")
        if record is None or not _process_exists(record.pid):
            return False
        try:
            connection = _connect(f"unix:{record.hold}" if record.hold else record.address)
        except OSError:
            return False
        if record.hold:
            connection.setblocking(False)
            self._hold = connection
        else:
            connection.close()
        self._record, self.address = record, record.address
        return True

    def _join_other(self, deadline: float) -> bool:
        """Wait for the server that another process is starting."""
        delay = 0.01
        while not self._join():
            if time.monotonic() > deadline:
                return False
            time.sleep(delay)
            delay = min(delay * 2, 0.2)
        return True

    def _start(self, deadline: float) -> bool:
        """Start a server; true when it serves, false when another one has the folder."""
        try:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            return server_process.start(self.project, self.state, socket_path(self.state), deadline)
        except OSError as error:
            raise EmbeddedServerError(f"Cannot start a server in {self.project}: {error}") from error

    def _is_alive(self, record: Record) -> bool:
        if self._hold is None:
            return _read_record(self.state / "server.json") == record and _process_exists(record.pid)
        try:
            return bool(self._hold.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False


_servers: dict[Path, EmbeddedServer] = {}
_servers_lock = threading.Lock()
_inherited: list[object] = []


def acquire(project: Path, state: Path | None = None) -> EmbeddedServer:
    """Join or start the server of the project; every call is followed by one `release`.

    Its state is in `.karta` of the project unless `state` names another folder,
    whatever karta.jsonc says: all users of a folder have to look in the same
    place. Blocks up to 30 s. Raises EmbeddedServerError.
    """
    project = project.resolve()
    if not project.is_dir():
        raise EmbeddedServerError(f"There is no folder {project}.")
    state = state.absolute() if state else project / ".karta"
    with _servers_lock:
        server = _servers.setdefault(state, EmbeddedServer(project, state))
        server.users += 1
    try:
        server.ensure()
    except BaseException:
        release(server)
        raise
    return server


def release(server: EmbeddedServer) -> None:
    """Give up one share; with the last one the process lets go of the server."""
    with _servers_lock:
        if _servers.get(server.state) is not server:
            return  # Inherited by a fork, which dropped it.
        server.users -= 1
        if server.users == 0:
            del _servers[server.state]
            server.close()


def socket_path(state: Path) -> Path:
    """Return where the server shall listen: in the state folder, or in a private one when that path is too long."""
    path = state / "karta.sock"
    if len(os.fsencode(path)) < _SOCKET_PATH_LIMIT_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base) / f"karta-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} must be a folder of yours that nobody else can enter")
    return folder / "karta.sock"


def _read_record(path: Path) -> Record | None:
    try:
        content = json.loads(path.read_text())
        return Record(int(content["pid"]), str(content["address"]), content.get("hold"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _connect(address: str) -> socket.socket:
    family = socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET
    if family == socket.AF_INET:
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), _CONNECT_LIMIT_SECONDS)
    connection = socket.socket(family)
    try:
        connection.settimeout(_CONNECT_LIMIT_SECONDS)
        connection.connect(address.removeprefix("unix:"))
    except BaseException:
        connection.close()
        raise
    return connection


def _forget_in_child() -> None:
    """After a fork: what was the parent's is neither used nor ended here."""
    global _servers_lock
    _servers_lock = threading.Lock()
    for server in _servers.values():
        _inherited.append(server)
        with contextlib.suppress(OSError):
            server.close()  # Only this process's copy; the parent keeps its own.
    _servers.clear()


os.register_at_fork(after_in_child=_forget_in_child)
