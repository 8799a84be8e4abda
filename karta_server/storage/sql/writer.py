"""The one writer: a thread with a connection that commits what is pending, from all sessions, as one group.

On the event loop, `submit` puts operations into a queue; the thread takes what
there is, up to a bound, without waiting for more, and hands the whole group
back to the loop in one call: first the listeners hear of it, then the writers
go on. The thread touches nothing else of asyncio.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import Commit
from karta_server.storage.sql import dialect, schema
from karta_server.storage.sql.logs import Clock
from karta_server.storage.sql.operation import Bounds, Group, Operation
from karta_server.storage.sql.transaction import NotBegunError, Transaction

T = TypeVar("T")
Listener = Callable[[Sequence[Commit]], None]

# A loop that always has something to do, and gives up the GIL only for a moment between two things, can
# keep the thread out for seconds: nobody hands over, and the loop is faster at taking it back. So while the
# thread finishes no group for longer than a commit takes, the loop lets it in for a moment now and then.
_STARVED_SECONDS: Final = 0.005
_GIVE_WAY_SECONDS: Final = 0.0005

_log = logging.getLogger(__name__)


class Writer:
    """Belongs to the event loop that opens it."""

    def __init__(self, path: Path, clock: Clock, bounds: Bounds) -> None:
        self._path = path
        self._clock = clock
        self._bounds = bounds
        self._listeners: list[Listener] = []
        self._queue: SimpleQueue[Operation[Any] | None] = SimpleQueue()
        self._queued_operations = 0
        self._queued_bytes = 0
        self._waiting: deque[Operation[Any]] = deque()
        self._thread: threading.Thread | None = None
        self._refusal = "The store is not open. Open it first."
        self._last = False
        self._groups = 0
        self._way: asyncio.TimerHandle | None = None

    # On the event loop.

    async def open(self) -> None:
        """Start the thread. Raises KartaError SCHEMA_TOO_NEW, STORE_UNAVAILABLE."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, args=(ready,), name="karta-store-writer", daemon=True)
        self._thread.start()
        await ready
        self._refusal = ""

    async def close(self) -> None:
        """Write what was submitted and end the thread."""
        if self._thread is None:
            return
        if not self._last:
            self._last = True
            self._refusal = self._refusal or "The store is closed. Repeat the call against the next instance."
            self._admit(everything=True)
            self._queue.put(None)
        await asyncio.shield(self._ended)
        if self._way is not None:
            self._way.cancel()
        self._thread.join()

    async def submit(self, operation: Operation[T]) -> T:
        """Return the operation's result when it is durable. Cancelling does not stop the operation."""
        if self._refusal:
            raise KartaError(v1.ERROR_REASON_STORE_UNAVAILABLE, self._refusal)
        if len(self._waiting) >= self._bounds.waiting_operations:
            raise KartaError(v1.ERROR_REASON_STORE_UNAVAILABLE, "Too many writes wait for the disk. Try again later.")
        self._waiting.append(operation)
        self._admit()
        return await operation.future

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """See Store.subscribe."""
        self._listeners.append(listener)

        def end() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return end

    def _admit(self, *, everything: bool = False) -> None:
        while self._waiting and (everything or self._has_room(self._waiting[0].size)):
            operation = self._waiting.popleft()
            self._queued_operations += 1
            self._queued_bytes += operation.size
            self._queue.put(operation)
        if self._queued_operations and self._way is None:
            self._way = self._loop.call_later(_STARVED_SECONDS, self._give_way, self._groups)

    def _give_way(self, groups: int) -> None:
        self._way = None
        if self._queued_operations:
            if self._groups == groups:  # None was finished since.
                time.sleep(_GIVE_WAY_SECONDS)
            self._admit()

    def _has_room(self, size: int) -> bool:
        if not self._queued_operations:
            return True  # Even one that alone is larger than the queue gets through.
        return (
            self._queued_operations < self._bounds.queue_operations
            and self._queued_bytes + size <= self._bounds.queue_bytes
        )

    def _finish(self, group: Group, commits: Sequence[Commit]) -> None:
        self._groups += 1
        if commits:
            for listener in tuple(self._listeners):
                try:
                    listener(commits)
                except Exception:
                    _log.exception("A listener of the store failed.")
        for operation in group:
            operation.settle()
            self._queued_operations -= 1
            self._queued_bytes -= operation.size
        self._admit()

    def _die(self, group: Group, error: BaseException) -> None:
        _log.error("The store's writer ended.", exc_info=error)
        self._refusal = "The store's writer ended after a defect; the log has more. Restart the server."
        self._admit(everything=True)
        with contextlib.suppress(Empty):
            while True:
                operation = self._queue.get_nowait()
                group += [operation] if operation else []
        for operation in group:
            operation.fail(KartaError(v1.ERROR_REASON_STORE_UNAVAILABLE, self._refusal))
        self._finish(group, ())

    # In the thread.

    def _main(self, ready: asyncio.Future[None]) -> None:
        engine = dialect.writer_engine(self._path)
        try:
            connection = _connect(engine)
        except BaseException as error:
            self._call(_resolve, ready, error)
        else:
            self._call(_resolve, ready, None)
            self._serve(connection)
        finally:
            engine.dispose()
            self._call(_resolve, self._ended, None)

    def _serve(self, connection: Connection) -> None:
        transaction = Transaction(connection, self._clock)
        group: Group = []
        try:
            while group := self._take():
                self._commit(transaction, group)
                group = []  # While it waits for more, the thread holds no events.
        except BaseException as error:
            self._call(self._die, group, error)
        finally:
            with contextlib.suppress(*dialect.DatabaseFailure):
                dialect.tidy(connection)
            with contextlib.suppress(*dialect.DatabaseFailure):
                connection.close()

    def _take(self) -> Group:
        group: Group = []
        size = 0
        with contextlib.suppress(Empty):
            operation = self._queue.get()
            while operation is not None:
                group.append(operation)
                size += operation.size
                if len(group) >= self._bounds.group_operations or size >= self._bounds.group_bytes:
                    return group
                operation = self._queue.get_nowait()
            self._queue.put(None)  # The end, which the next call is to find too.
        return group

    def _commit(self, transaction: Transaction, group: Group) -> None:
        def work() -> None:
            for operation in group:
                operation.attempt(transaction)

        try:
            commits = transaction.transact(work, (key for operation in group for key in operation.sessions))
        except Exception as error:
            if len(group) == 1 or isinstance(error, NotBegunError):
                self._fail(group, error.__cause__ or error)
                return
            # One of them may be all that is wrong.
            for operation in group:
                self._commit(transaction, [operation])
        else:
            self._call(self._finish, group, commits)

    def _fail(self, group: Group, error: BaseException) -> None:
        _log.error("The store could not commit %d writes.", len(group), exc_info=error)
        for operation in group:
            operation.fail(dialect.unavailable(error))
        self._call(self._finish, group, ())

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(function, *arguments)


def _connect(engine: Engine) -> Connection:
    try:
        connection = engine.connect()
        try:
            schema.prepare(connection)
        except BaseException:
            connection.close()
            raise
    except dialect.DatabaseFailure as error:
        raise dialect.unavailable(error) from error
    return connection


def _resolve(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
