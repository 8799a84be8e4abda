"""The store on SQLite."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from karta import v1
from karta_server.storage.contract import Commit, Fence, SessionKey, Store, Unit
from karta_server.storage.sql.logs import Clock
from karta_server.storage.sql.operation import Bounds, Operation
from karta_server.storage.sql.read_connections import ReadConnections
from karta_server.storage.sql.readers import (
    SqlEventReader,
    SqlInputReader,
    SqlRequestReader,
    SqlSessionReader,
    SqlTurnReader,
)
from karta_server.storage.sql.writer import Writer

T = TypeVar("T")

# Measuring an event is serializing it, which is the writer's work; most are smaller than this.
_EVENT_BYTES: Final = 256


class SqlStore(Store):
    """The store in one SQLite file, which no other process may write: see storage/lock.py."""

    def __init__(self, path: Path, *, clock: Clock = time.time_ns, bounds: Bounds = Bounds()) -> None:  # noqa: B008
        self._path = path
        self._connections = ReadConnections(path)
        self._writer = Writer(path, clock, bounds)
        self.sessions = SqlSessionReader(self._connections)
        self.turns = SqlTurnReader(self._connections)
        self.inputs = SqlInputReader(self._connections)
        self.requests = SqlRequestReader(self._connections, clock)
        self.events = SqlEventReader(self._connections)

    async def open(self) -> None:
        await self._writer.open()
        self._connections.open()

    async def close(self) -> None:
        await self._writer.close()
        await self._connections.close()

    async def write(self, unit: Unit[T], *sessions: SessionKey) -> T:
        return await self._writer.submit(Operation(lambda transaction: transaction.run(unit, sessions), sessions))

    async def append(self, key: SessionKey, events: Sequence[v1.Event], fence: Fence | None) -> int:
        batch = tuple(events)  # The caller may be cancelled, and use its list for something else.
        size = len(batch) * _EVENT_BYTES
        return await self._writer.submit(
            Operation(lambda transaction: transaction.append(key, batch, fence), (key,), size)
        )

    def subscribe(self, listener: Callable[[Sequence[Commit]], None]) -> Callable[[], None]:
        return self._writer.subscribe(listener)
