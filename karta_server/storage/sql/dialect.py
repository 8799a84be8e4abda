"""All that is special to SQLite. Nothing else in this package knows which database it is on.

Durability: WAL with synchronous=FULL, so that what is visible survives a power
cut and not only the end of the process. With NORMAL a power cut could take the
last commits, which somebody has seen; a commit alone is 10 µs instead of 300 µs
then, and a loaded server hardly faster, for a group of writers shares one fsync.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

import aiosqlite
from sqlalchemy import URL, Connection, Engine, NullPool, Select, Table, create_engine, event
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from karta import v1
from karta_server.errors import KartaError

DatabaseFailure = (SQLAlchemyError, sqlite3.Error)
"""What a database that does not do what it is told raises."""

_DRIVER = pysqlite.dialect(paramstyle="qmark")
_BUSY_TIMEOUT_MS = 5_000
_VACUUM_PAGES = 4_096
# Six tables, and seldom more than a few dozen rows at once.
_KEPT_TEXTS = 256

_WRITER_PRAGMAS = (
    f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}",
    # Before the first table, or it has no effect: lets `tidy` give space back to the file system.
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    # 16 MiB between checkpoints, which cost more fsyncs than the commits; what a slow reader made the
    # WAL grow to beyond 64 MiB is given back.
    "PRAGMA wal_autocheckpoint = 4096",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA cache_size = -16384",
    "PRAGMA temp_store = MEMORY",
)
_READER_PRAGMAS = (
    f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}",
    # Only the writer writes.
    "PRAGMA query_only = ON",
)


def writer_engine(path: Path) -> Engine:
    """Return an engine whose transactions hold the write lock from their begin."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        # What users say does not belong into a log.
        hide_parameters=True,
        connect_args={"isolation_level": None, "cached_statements": _KEPT_TEXTS},
    )
    event.listen(engine, "connect", _apply(_WRITER_PRAGMAS))
    event.listen(engine, "begin", _begin_immediate)
    return engine


async def reader_connection(path: Path) -> aiosqlite.Connection:
    """Return a connection that can only read."""
    connection = await aiosqlite.connect(path, isolation_level=None)
    for pragma in _READER_PRAGMAS:
        await connection.execute_fetchall(pragma)
    return connection


class Query:
    """A SELECT as the readers' driver takes it: text and positional parameters."""

    def __init__(self, statement: Select[Any]) -> None:
        compiled = statement.compile(dialect=_DRIVER, compile_kwargs={"render_postcompile": True})
        self.sql = str(compiled)
        self._names: list[str] = getattr(compiled, "positiontup", None) or []
        self._own = compiled.params

    def parameters(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the values in the order of the text's placeholders."""
        return tuple(given[name] if name in given else self._own[name] for name in self._names)


def looking_engine(path: Path) -> Engine:
    """Return an engine that looks at an existing database without changing it, whoever else has it open."""
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
    event.listen(engine, "connect", _apply(_READER_PRAGMAS))
    return engine


def tidy(connection: Connection) -> None:
    """Give space that deleted sessions left back to the file system, a bounded amount at a time."""
    driver = cast(sqlite3.Connection, connection.connection.driver_connection)
    # It gives back a page a step, and `execute` does but one.
    driver.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")


Statement = tuple[str, tuple[Any, ...]]
"""For exec_driver_sql: text and positional parameters."""


def upsert(table: Table, rows: Sequence[Sequence[Any]]) -> Statement:
    """Return an INSERT of these rows, all columns in their order, that replaces rows of the same key."""
    return _insert_text(table, len(rows), replaces=True), tuple(chain.from_iterable(rows))


def insert(table: Table, rows: Sequence[Sequence[Any]]) -> Statement:
    """Return an INSERT of these rows, all columns in their order."""
    return _insert_text(table, len(rows), replaces=False), tuple(chain.from_iterable(rows))


def values(rows: Sequence[Sequence[Any]]) -> Statement:
    """Return a VALUES list, and its parameters.

    One statement for many rows: executemany gives up the GIL for each row and
    waits for the event loop to give it back.
    """
    return _values_text(len(rows[0]), len(rows)), tuple(chain.from_iterable(rows))


@lru_cache(maxsize=_KEPT_TEXTS)
def _insert_text(table: Table, rows: int, *, replaces: bool) -> str:
    names = table.columns.keys()
    key = table.primary_key.columns.keys()
    # Names of this package's own tables.
    text = f"INSERT INTO {table.name} ({', '.join(names)}) {_values_text(len(names), rows)}"
    if not replaces:
        return text
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name not in key)
    return f"{text} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"


def _values_text(columns: int, rows: int) -> str:
    row = f"({','.join('?' * columns)})"
    return f"VALUES {','.join([row] * rows)}"


def lost_transaction(error: BaseException) -> bool:
    """Whether this is a failure of the database that takes the transaction with it. A broken constraint is none."""
    return isinstance(error, DatabaseFailure) and not isinstance(error, IntegrityError)


def unavailable(error: BaseException) -> KartaError:
    """Return what a failure of the database is to the caller."""
    cause = getattr(error, "orig", None) or error
    return KartaError(
        v1.ERROR_REASON_STORE_UNAVAILABLE,
        f"The database did not answer: {cause}. See that its disk has room, that its files can be written, "
        "and that no other program holds them; then repeat the call.",
    )


def _apply(pragmas: Sequence[str]) -> Any:
    def connect(connection: sqlite3.Connection, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    return connect


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
