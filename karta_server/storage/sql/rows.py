"""Sessions inside of a unit, and the transaction as a unit sees it."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select

from karta import v1
from karta_server.storage.contract import Fence, SessionKey, SessionRows, Tx
from karta_server.storage.sql import dialect, tables
from karta_server.storage.sql.logs import Clock, Log, Logs
from karta_server.storage.sql.request_rows import SqlRequestRows
from karta_server.storage.sql.turn_rows import SqlInputRows, SqlTurnRows

_sessions = tables.sessions.c
_KEY = (_sessions.tenant_id == bindparam("tenant"), _sessions.session_id == bindparam("session"))
_GET = select(_sessions.body).where(*_KEY)
_FIND_LATEST = (
    select(_sessions.body, _sessions.session_id)
    .where(
        _sessions.tenant_id == bindparam("tenant"),
        _sessions.user_id == bindparam("user"),
        _sessions.metadata_digest == bindparam("digest"),
        _sessions.state == v1.SESSION_STATE_ACTIVE,
    )
    .order_by(_sessions.update_time.desc(), _sessions.session_id.desc())
    .limit(1)
)
_PUT = dialect.upsert(tables.sessions, keep=("fence", "latest_sequence", "oldest_sequence", "update_time"))
_PUT_MEMORY = dialect.upsert(tables.session_memories)
_ADVANCE_FENCE = tables.sessions.update().where(*_KEY).values(fence=bindparam("number"))
_DELETE = [
    delete(table).where(table.c.tenant_id == bindparam("tenant"), table.c.session_id == bindparam("session"))
    for table in tables.metadata.sorted_tables
    if "session_id" in table.c
]
_DELETE_METADATA = delete(tables.session_metadata).where(
    tables.session_metadata.c.tenant_id == bindparam("tenant"),
    tables.session_metadata.c.session_id == bindparam("session"),
)


def metadata_digest(metadata: Mapping[str, str]) -> bytes:
    """Return what two maps have in common only when they are equal."""
    digest = sha256()
    for text in (text for entry in sorted(metadata.items()) for text in entry):
        data = text.encode()
        digest.update(len(data).to_bytes(8) + data)
    return digest.digest()


def search_text(session: v1.Session) -> str:
    """Return what a `query` looks into, without letter case."""
    return "\n".join([session.title, *session.metadata.values()]).casefold()


def read_session(body: bytes, latest_sequence: int, oldest_sequence: int, update_time: int) -> v1.Session:
    """Return the session of a row."""
    session = v1.Session.FromString(body)
    session.latest_sequence = latest_sequence
    session.oldest_sequence = oldest_sequence
    session.update_time.FromMicroseconds(update_time)
    return session


class SqlSessionRows(SessionRows):
    """See the contract."""

    def __init__(self, connection: Connection, logs: Logs, clock: Clock) -> None:
        self._connection = connection
        self._logs = logs
        self._clock = clock

    def get(self, key: SessionKey) -> v1.Session | None:
        log = self._logs.find(key)
        if not log.exists:
            return None
        body = self._connection.execute(_GET, _parameters(key)).scalar_one()
        return read_session(body, log.latest_sequence, log.oldest_sequence, log.update_time)

    def find_latest(self, tenant_id: str, user_id: str, metadata: dict[str, str]) -> v1.Session | None:
        self._logs.flush_rows()
        row = self._connection.execute(
            _FIND_LATEST, {"tenant": tenant_id, "user": user_id, "digest": metadata_digest(metadata)}
        ).first()
        if row is None:
            return None
        log = self._logs.find(SessionKey(tenant_id, row.session_id))
        return read_session(row.body, log.latest_sequence, log.oldest_sequence, log.update_time)

    def put(self, session: v1.Session) -> None:
        log = self._logs.change(SessionKey(session.tenant_id, session.session_id))
        if not log.exists:
            log.exists = True
            log.update_time = _begin_time(session) or self._clock() // 1_000
        digest = metadata_digest(session.metadata)
        self._connection.execute(_PUT, _session_row(session, digest, log))
        if digest != log.metadata_digest:
            self._put_metadata(log.key, session.metadata)
        log.metadata_digest, log.active_turn_id = digest, session.active_turn_id

    def delete(self, key: SessionKey) -> None:
        log = self._logs.change_existing(key)
        for statement in _DELETE:
            self._connection.execute(statement, _parameters(key))
        log.clear()

    def set_memory(self, key: SessionKey, memory: bytes) -> None:
        self._logs.change_existing(key)
        self._connection.execute(
            _PUT_MEMORY, {"tenant_id": key.tenant_id, "session_id": key.session_id, "memory": memory}
        )

    def advance_fence(self, key: SessionKey) -> int:
        log = self._logs.change_existing(key)
        log.fence += 1
        self._connection.execute(_ADVANCE_FENCE, {**_parameters(key), "number": log.fence})
        return log.fence

    def _put_metadata(self, key: SessionKey, metadata: Mapping[str, str]) -> None:
        self._connection.execute(_DELETE_METADATA, _parameters(key))
        if metadata:
            values, parameters = dialect.values([(*key, *entry) for entry in metadata.items()])
            self._connection.exec_driver_sql(
                f"INSERT INTO session_metadata (tenant_id, session_id, key, value) {values}", parameters
            )


class SqlTx(Tx):
    """See the contract."""

    def __init__(self, connection: Connection, logs: Logs, clock: Clock) -> None:
        self._logs = logs
        self.sessions = SqlSessionRows(connection, logs, clock)
        self.turns = SqlTurnRows(connection, logs)
        self.inputs = SqlInputRows(connection, logs)
        self.requests = SqlRequestRows(connection, clock)

    def append(self, key: SessionKey, events: Iterable[v1.Event], fence: Fence | None) -> int:
        return self._logs.append(key, events, fence)

    def trim(self, key: SessionKey, keep_events: int, keep_since: int) -> int:
        return self._logs.trim(key, keep_events, keep_since)


def _parameters(key: SessionKey) -> dict[str, str]:
    return {"tenant": key.tenant_id, "session": key.session_id}


def _begin_time(session: v1.Session) -> int:
    return session.update_time.ToMicroseconds() or session.create_time.ToMicroseconds()


def _session_row(session: v1.Session, digest: bytes, log: Log) -> dict[str, Any]:
    stored = v1.Session()
    stored.CopyFrom(session)
    stored.ClearField("latest_sequence")
    stored.ClearField("oldest_sequence")
    stored.ClearField("update_time")
    return {
        "tenant_id": session.tenant_id,
        "session_id": session.session_id,
        "user_id": session.user_id,
        "state": session.state,
        "agent": session.agent,
        "metadata_digest": digest,
        "search": search_text(session),
        "active_turn_id": session.active_turn_id,
        "fence": log.fence,
        "latest_sequence": log.latest_sequence,
        "oldest_sequence": log.oldest_sequence,
        "update_time": log.update_time,
        "body": stored.SerializeToString(),
    }
