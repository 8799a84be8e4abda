"""The hold socket: an embedded server lives as long as anybody is connected to it.

The system closes a connection when its process ends, however it ends, so
nothing has to be said and nobody has to be asked.
"""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from karta_server.sockets import private_umask, remove_stale

FIRST_SECONDS = 10.0
"""How long the first user may take to come."""
LAST_SECONDS = 2.0
"""How long after the last user left another one may come."""
MAX_USERS = 1024


class Hold:
    """An async context manager that calls `abandoned`, once, when no user is left."""

    def __init__(self, path: Path, abandoned: Callable[[], None]) -> None:
        self.path = path
        self._abandoned = abandoned
        self._users: set[asyncio.BaseTransport] = set()
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        remove_stale(self.path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            with private_umask():
                listener.bind(str(self.path))
        except BaseException:
            listener.close()
            raise
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _User(self), sock=listener)
        self._wait(FIRST_SECONDS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer:
            self._timer.cancel()
        if self._server:
            self._server.close()
        # The path goes first: who reads it from an old server.json must not wait for an answer.
        self.path.unlink(missing_ok=True)
        for user in list(self._users):
            user.close()
        if self._server:
            await self._server.wait_closed()

    def came(self, user: asyncio.BaseTransport) -> None:
        """Count a user in."""
        if len(self._users) >= MAX_USERS:
            user.close()
            return
        self._users.add(user)
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def left(self, user: asyncio.BaseTransport) -> None:
        """Count a user out."""
        if user not in self._users:
            return
        self._users.discard(user)
        closing = self._server is None or not self._server.is_serving()
        if not self._users and not closing:
            self._wait(LAST_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._abandoned)


class _User(asyncio.Protocol):
    """One connection; what it sends means nothing."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._hold.came(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport:
            self._hold.left(self._transport)
