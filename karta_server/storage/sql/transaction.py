"""The transactions of the writer: appends and units of many callers in each."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from karta import v1
from karta_server.storage.contract import Commit, Fence, SessionKey, Unit
from karta_server.storage.sql import dialect
from karta_server.storage.sql.cache import Cache
from karta_server.storage.sql.logs import Clock, Logs
from karta_server.storage.sql.rows import SqlTx

T = TypeVar("T")


class NotBegunError(Exception):
    """The database did not give the write lock; the cause says why."""


class Transaction:
    """What operations run in: one at a time, from its begin to its commit."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._cache = Cache(connection)
        self._logs = Logs(connection, self._cache, clock)
        self._tx = SqlTx(connection, self._cache, self._logs, clock)

    def transact(self, work: Callable[[], None], sessions: Iterable[SessionKey]) -> Sequence[Commit]:
        """Begin, do the work, which changes these sessions, and commit. Raises what the database raises;
        then nothing is changed. Raises NotBegunError when it was not even begun."""
        try:
            transaction = self._connection.begin()
        except dialect.DatabaseFailure as error:
            raise NotBegunError from error
        try:
            with transaction:
                self._cache.load(sessions)
                work()
                commits = self._cache.flush()
        except BaseException:
            self._cache.lost()
            raise
        self._cache.committed()
        return commits

    def run(self, unit: Unit[T], sessions: Sequence[SessionKey]) -> T:
        """Run a unit. What it changed is gone when it raises."""
        self._cache.begin(sessions)
        try:
            result = unit(self._tx)
        except BaseException as error:
            if not dialect.lost_transaction(error):  # Then there is nothing any more to go back to.
                self._cache.undo()
            raise
        self._cache.keep()
        return result

    def append(self, key: SessionKey, events: Sequence[v1.Event], fence: Fence | None) -> int:
        """Append events, or raise and change nothing."""
        return self._logs.append(key, events, fence)
