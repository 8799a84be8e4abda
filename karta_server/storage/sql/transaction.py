"""The transactions of the writer: appends and units of many callers in each."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from karta import v1
from karta_server.storage.contract import Commit, Fence, SessionKey, Unit
from karta_server.storage.sql.logs import Clock, Logs
from karta_server.storage.sql.rows import SqlTx

T = TypeVar("T")


class Transaction:
    """What operations run in, and what is known from one transaction to the next."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._logs = Logs(connection, clock)
        self._tx = SqlTx(connection, self._logs, clock)

    def load(self, sessions: Iterable[SessionKey]) -> None:
        """Read ahead what operations on these sessions need."""
        self._logs.load(sessions)

    def flush(self) -> Sequence[Commit]:
        """Write what is collected, before the commit; return what has changed once that has succeeded."""
        return self._logs.flush()

    def committed(self) -> None:
        """Be ready for the next transaction."""
        self._logs.committed()

    def lost(self) -> None:
        """Be ready for the next transaction: this one was rolled back."""
        self._logs.lost()

    def run(self, unit: Unit[T]) -> T:
        """Run a unit. What it changed is gone when it raises."""
        self._logs.begin()
        self._connection.exec_driver_sql("SAVEPOINT unit")
        try:
            result = unit(self._tx)
        except BaseException:
            self._logs.undo()
            self._connection.exec_driver_sql("ROLLBACK TO unit")
            self._connection.exec_driver_sql("RELEASE unit")
            raise
        self._connection.exec_driver_sql("RELEASE unit")
        self._logs.keep()
        return result

    def append(self, key: SessionKey, events: Sequence[v1.Event], fence: Fence | None) -> int:
        """Append events, or raise and change nothing."""
        return self._logs.append(key, events, fence)
