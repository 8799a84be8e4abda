"""The transactions of the writer: appends and units of many callers in each."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from karta import v1
from karta_server.storage.contract import Commit, Fence, SessionKey, Unit
from karta_server.storage.sql import dialect
from karta_server.storage.sql.logs import Clock, Logs
from karta_server.storage.sql.rows import SqlTx

T = TypeVar("T")


class NotBegunError(Exception):
    """The database did not give the write lock; the cause says why."""


class Transaction:
    """What operations run in: one at a time, from its begin to its commit."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._logs = Logs(connection, clock)
        self._tx = SqlTx(connection, self._logs, clock)

    def transact(self, work: Callable[[], None], sessions: Iterable[SessionKey]) -> Sequence[Commit]:
        """Begin, do the work, which changes these sessions, and commit. Raises what the database raises;
        then nothing is changed. Raises NotBegunError when it was not even begun."""
        try:
            transaction = self._connection.begin()
        except dialect.DatabaseFailure as error:
            raise NotBegunError from error
        try:
            with transaction:
                self._logs.load(sessions)
                work()
                commits = self._logs.flush()
        except BaseException:
            self._logs.lost()
            raise
        self._logs.committed()
        return commits

    def run(self, unit: Unit[T]) -> T:
        """Run a unit. What it changed is gone when it raises."""
        self._logs.begin()
        self._connection.exec_driver_sql("SAVEPOINT unit")
        try:
            result = unit(self._tx)
        except BaseException as error:
            self._logs.undo()
            if dialect.lost_transaction(error):
                raise  # There is no savepoint any more to go back to.
            self._connection.exec_driver_sql("ROLLBACK TO unit")
            self._connection.exec_driver_sql("RELEASE unit")
            raise
        self._connection.exec_driver_sql("RELEASE unit")
        self._logs.keep()
        return result

    def append(self, key: SessionKey, events: Sequence[v1.Event], fence: Fence | None) -> int:
        """Append events, or raise and change nothing."""
        return self._logs.append(key, events, fence)
