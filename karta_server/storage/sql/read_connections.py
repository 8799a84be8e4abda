"""The connections that readers share."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiosqlite

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.sql import dialect
from karta_server.storage.sql.dialect import Query

_CONNECTIONS: Final = 4
_WAIT_SECONDS: Final = 10
_MOST_ROWS_AT_ONCE: Final = 64


class ReadConnections:
    """Up to four connections, made when they are needed. Every failure is KartaError STORE_UNAVAILABLE."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_open = False
        self._idle: list[aiosqlite.Connection] = []
        self._free = asyncio.Semaphore(_CONNECTIONS)

    def open(self) -> None:
        """Allow reading."""
        self._is_open = True

    async def close(self) -> None:
        """Let reads in progress end, and all connections go."""
        if not self._is_open:
            return
        self._is_open = False
        for _ in range(_CONNECTIONS):
            await self._free.acquire()
        while self._idle:
            await self._idle.pop().close()

    async def all(self, query: Query, **parameters: Any) -> Sequence[Any]:
        """Return all rows."""
        async with self._lend() as connection:
            return list(await connection.execute_fetchall(query.sql, query.parameters(parameters)))

    @asynccontextmanager
    async def stream(self, query: Query, ahead: int = 1, **parameters: Any) -> AsyncIterator[AsyncIterator[Any]]:
        """Give the rows one after the other, fetching few ahead of what is taken; `ahead` at first."""
        async with self._lend() as connection, connection.execute(query.sql, query.parameters(parameters)) as cursor:
            yield _rows(cursor, ahead)

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[aiosqlite.Connection]:
        self._check()
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._free.acquire()
        except TimeoutError as error:
            raise dialect.unavailable(error) from error
        try:
            self._check()
            connection = self._idle.pop() if self._idle else await dialect.reader_connection(self._path)
            try:
                yield connection
            finally:
                self._idle.append(connection)
        except dialect.DatabaseFailure as error:
            raise dialect.unavailable(error) from error
        finally:
            self._free.release()

    def _check(self) -> None:
        if not self._is_open:
            raise KartaError(
                v1.ERROR_REASON_STORE_UNAVAILABLE, "The store is closed. Repeat the call against the next instance."
            )


async def _rows(cursor: aiosqlite.Cursor, ahead: int) -> AsyncIterator[Any]:
    while rows := await cursor.fetchmany(ahead):
        for row in rows:
            yield row
        ahead = min(ahead * 4, _MOST_ROWS_AT_ONCE)
