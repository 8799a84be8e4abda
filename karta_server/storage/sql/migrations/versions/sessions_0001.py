"""The session aggregate: sessions, turns, input requests, logs, and the answers to request_ids."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _create_sessions()
    _create_turns()
    _create_inputs()
    _create_event_chunks()
    _create_requests()


def _key(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, primary_key=True) for name in names]


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=False)


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        *_key("tenant_id", "session_id"),
        _text("user_id"),
        sa.Column("state", sa.Integer, nullable=False),
        _text("agent"),
        _bytes("metadata_digest"),
        _text("search"),
        _text("active_turn_id"),
        _number("fence"),
        _number("latest_sequence"),
        _number("oldest_sequence"),
        _number("update_time"),
        _bytes("body"),
    )
    op.create_index("sessions_by_update_time", "sessions", ["tenant_id", "update_time", "session_id"])
    op.create_index(
        "sessions_by_metadata",
        "sessions",
        ["tenant_id", "user_id", "metadata_digest", "state", "update_time", "session_id"],
    )
    op.create_table("session_metadata", *_key("tenant_id", "session_id", "key"), _text("value"))
    op.create_index("session_metadata_by_entry", "session_metadata", ["tenant_id", "key", "value", "session_id"])
    op.create_table("session_memories", *_key("tenant_id", "session_id"), _bytes("memory"))


def _create_turns() -> None:
    op.create_table(
        "turns",
        *_key("tenant_id", "session_id", "turn_id"),
        sa.Column("state", sa.Integer, nullable=False),
        _number("first_sequence"),
        _text("owner"),
        _number("fence"),
        _number("create_time"),
        _bytes("body"),
    )
    order = ["tenant_id", "session_id", "first_sequence", "turn_id"]
    op.create_index("turns_by_sequence", "turns", order)
    active = sa.text("state IN (2, 3)")
    op.create_index(
        "turns_one_active",
        "turns",
        ["tenant_id", "session_id"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )
    queued = sa.text("state = 1")
    op.create_index("turns_queued", "turns", order, sqlite_where=queued, postgresql_where=queued)


def _create_inputs() -> None:
    op.create_table(
        "inputs",
        *_key("tenant_id", "input_request_id"),
        _text("session_id"),
        _text("turn_id"),
        sa.Column("state", sa.Integer, nullable=False),
        _bytes("body"),
    )
    op.create_index("inputs_by_session", "inputs", ["tenant_id", "session_id", "turn_id", "input_request_id"])
    op.create_index("inputs_by_state", "inputs", ["tenant_id", "state", "input_request_id"])


def _create_event_chunks() -> None:
    op.create_table(
        "event_chunks",
        *_key("tenant_id", "session_id"),
        sa.Column("last_sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        _number("first_sequence"),
        _number("create_time"),
        _bytes("frames"),
    )


def _create_requests() -> None:
    op.create_table(
        "requests",
        *_key("tenant_id", "principal", "request_id"),
        _bytes("fingerprint"),
        _bytes("response"),
        _text("session_id"),
        _number("create_time"),
    )
    op.create_index("requests_by_create_time", "requests", ["create_time"])
    op.create_index("requests_by_session", "requests", ["tenant_id", "session_id"])
