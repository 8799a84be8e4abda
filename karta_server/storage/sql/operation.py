"""What goes through the writer, and how much of it at once."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy.exc import IntegrityError

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import SessionKey
from karta_server.storage.sql import dialect
from karta_server.storage.sql.transaction import Transaction

T = TypeVar("T")


class Bounds(NamedTuple):
    """How much the writer takes at once. Bytes are those of events."""

    queue_operations: int = 4_096
    """Operations that the thread has; further ones wait on the loop, in order."""
    queue_bytes: int = 32 * 1024 * 1024
    waiting_operations: int = 65_536
    """Operations that wait on the loop; further ones are refused."""
    group_operations: int = 1_024
    group_bytes: int = 8 * 1024 * 1024


class Operation(Generic[T]):
    """An append or a unit on its way through the writer."""

    __slots__ = ("_error", "_result", "_run", "future", "sessions", "size")

    def __init__(self, run: Callable[[Transaction], T], sessions: Sequence[SessionKey], size: int = 0) -> None:
        self._run = run
        self.sessions = sessions
        self.size = size
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._result: Any = None
        self._error: BaseException | None = None

    def attempt(self, transaction: Transaction) -> None:
        """Run, and keep the outcome. Raises when the whole transaction is lost."""
        self._error = None
        try:
            self._result = self._run(transaction)
        except IntegrityError as error:
            self._error = KartaError(
                v1.ERROR_REASON_INTERNAL, f"A unit broke a constraint of the store: {error.orig}. Nothing was changed."
            )
        except BaseException as error:
            if dialect.lost_transaction(error):
                raise
            self._error = error

    def fail(self, error: BaseException) -> None:
        """Have this outcome."""
        self._error = error

    def settle(self) -> None:
        """Give the outcome to the caller, if it still waits."""
        if self.future.done():
            return
        if self._error is None:
            self.future.set_result(self._result)
        elif isinstance(self._error, StopIteration):  # Which no future takes.
            self.future.set_exception(RuntimeError("A unit raised StopIteration."))
        else:
            self.future.set_exception(self._error)


Group = list[Operation[Any]]
