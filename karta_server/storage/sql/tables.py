"""Tables of the session aggregate. Every key begins with the tenant.

A row keeps its message serialized in `body`; the other columns are what is
searched, sorted, or changed without touching the body. Times are microseconds
since 1970.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    literal_column,
    text,
)

from karta import v1

metadata = MetaData()

# Literals and not parameters: only so does a query use the partial indexes.
ACTIVE: "list[ColumnElement[int]]" = [
    literal_column(str(state)) for state in (v1.TURN_STATE_RUNNING, v1.TURN_STATE_INPUT_REQUIRED)
]
QUEUED: "ColumnElement[int]" = literal_column(str(v1.TURN_STATE_QUEUED))
_IS_ACTIVE = text(f"state IN ({', '.join(map(str, ACTIVE))})")
_IS_QUEUED = text(f"state = {QUEUED}")


def _key(name: str) -> "Column[Any]":
    return Column(name, Text, primary_key=True)


def _text(name: str) -> "Column[Any]":
    return Column(name, Text, nullable=False)


def _number(name: str) -> "Column[Any]":
    return Column(name, BigInteger, nullable=False)


def _bytes(name: str) -> "Column[Any]":
    return Column(name, LargeBinary, nullable=False)


sessions = Table(
    "sessions",
    metadata,
    _key("tenant_id"),
    _key("session_id"),
    _text("user_id"),
    Column("state", Integer, nullable=False),
    _text("agent"),
    _bytes("metadata_digest"),
    # Title and metadata values, case folded: what `query` looks into.
    _text("search"),
    _text("active_turn_id"),
    _number("fence"),
    # These three follow the log: each group of appends sets them, so the body has not got them.
    _number("latest_sequence"),
    _number("oldest_sequence"),
    _number("update_time"),
    _bytes("body"),
    Index("sessions_by_update_time", "tenant_id", "update_time", "session_id"),
    Index("sessions_by_metadata", "tenant_id", "user_id", "metadata_digest", "state", "update_time", "session_id"),
)

session_metadata = Table(
    "session_metadata",
    metadata,
    _key("tenant_id"),
    _key("session_id"),
    _key("key"),
    _text("value"),
    Index("session_metadata_by_entry", "tenant_id", "key", "value", "session_id"),
)

# Beside the session and not in it: a row that each append rewrites should be small.
session_memories = Table(
    "session_memories",
    metadata,
    _key("tenant_id"),
    _key("session_id"),
    _bytes("memory"),
)

turns = Table(
    "turns",
    metadata,
    _key("tenant_id"),
    _key("session_id"),
    _key("turn_id"),
    Column("state", Integer, nullable=False),
    _number("first_sequence"),
    _text("owner"),
    _number("fence"),
    _number("create_time"),
    _bytes("body"),
    Index("turns_by_sequence", "tenant_id", "session_id", "first_sequence", "turn_id"),
    Index(
        "turns_one_active",
        "tenant_id",
        "session_id",
        unique=True,
        sqlite_where=_IS_ACTIVE,
        postgresql_where=_IS_ACTIVE,
    ),
    Index(
        "turns_queued",
        "tenant_id",
        "session_id",
        "first_sequence",
        "turn_id",
        sqlite_where=_IS_QUEUED,
        postgresql_where=_IS_QUEUED,
    ),
)

inputs = Table(
    "inputs",
    metadata,
    _key("tenant_id"),
    _key("input_request_id"),
    _text("session_id"),
    _text("turn_id"),
    Column("state", Integer, nullable=False),
    _bytes("body"),
    Index("inputs_by_session", "tenant_id", "session_id", "turn_id", "input_request_id"),
    Index("inputs_by_state", "tenant_id", "state", "input_request_id"),
)

# A chunk is what one transaction added to one log, framed as it is streamed. Its last sequence is its
# key, for readers ask for what is behind a sequence.
event_chunks = Table(
    "event_chunks",
    metadata,
    _key("tenant_id"),
    _key("session_id"),
    Column("last_sequence", BigInteger, primary_key=True, autoincrement=False),
    _number("first_sequence"),
    # Of its newest event.
    _number("create_time"),
    _bytes("frames"),
)

requests = Table(
    "requests",
    metadata,
    _key("tenant_id"),
    _key("principal"),
    _key("request_id"),
    _bytes("fingerprint"),
    _bytes("response"),
    _text("session_id"),
    _number("create_time"),
    Index("requests_by_create_time", "create_time"),
    Index("requests_by_session", "tenant_id", "session_id"),
)
