"""One transaction of the writer: the appends and units of many callers."""

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import Connection

from karta import v1
from karta_server.storage.contract import Fence, SessionKey, Unit
from karta_server.storage.sql.logs import Clock, Logs
from karta_server.storage.sql.rows import SqlTx

T = TypeVar("T")


class Transaction:
    """What operations run in."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self.logs = Logs(connection, clock)
        self._tx = SqlTx(connection, self.logs, clock)

    def run(self, unit: Unit[T], sessions: Sequence[SessionKey]) -> T:
        """Run a unit. What it changed is gone when it raises."""
        self.logs.begin(sessions)
        self._connection.exec_driver_sql("SAVEPOINT unit")
        try:
            result = unit(self._tx)
        except BaseException:
            self.logs.undo()
            self._connection.exec_driver_sql("ROLLBACK TO unit")
            self._connection.exec_driver_sql("RELEASE unit")
            raise
        self._connection.exec_driver_sql("RELEASE unit")
        self.logs.keep()
        return result

    def append(self, key: SessionKey, events: Sequence[v1.Event], fence: Fence | None) -> int:
        """Append events, or raise and change nothing."""
        return self.logs.append(key, events, fence)
