"""Sessions inside of a unit, and the transaction as a unit sees it."""

from collections.abc import Iterable, Mapping
from hashlib import sha256

from sqlalchemy import Connection, bindparam, delete, select

from karta import v1
from karta_server.storage.contract import Fence, SessionKey, SessionRows, Tx
from karta_server.storage.sql import tables
from karta_server.storage.sql.cache import Cache
from karta_server.storage.sql.logs import Clock, Logs
from karta_server.storage.sql.request_rows import SqlRequestRows
from karta_server.storage.sql.session_state import SessionRow
from karta_server.storage.sql.turn_rows import SqlInputRows, SqlTurnRows

_sessions = tables.sessions.c
_FIND_LATEST = (
    select(_sessions.session_id)
    .where(
        _sessions.tenant_id == bindparam("tenant"),
        _sessions.user_id == bindparam("user"),
        _sessions.metadata_digest == bindparam("digest"),
        _sessions.state == v1.SESSION_STATE_ACTIVE,
    )
    .order_by(_sessions.update_time.desc(), _sessions.session_id.desc())
    .limit(1)
)
_DELETE = [
    delete(table).where(table.c.tenant_id == bindparam("tenant"), table.c.session_id == bindparam("session"))
    for table in tables.metadata.sorted_tables
    if "session_id" in table.c
]


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

    def __init__(self, connection: Connection, cache: Cache, clock: Clock) -> None:
        self._connection = connection
        self._cache = cache
        self._clock = clock

    def get(self, key: SessionKey) -> v1.Session | None:
        state = self._cache.find(key)
        return _session(state.row) if state.exists else None

    def find_latest(self, tenant_id: str, user_id: str, metadata: dict[str, str]) -> v1.Session | None:
        self._cache.expose()
        session_id = self._connection.execute(
            _FIND_LATEST, {"tenant": tenant_id, "user": user_id, "digest": metadata_digest(metadata)}
        ).scalar()
        return None if session_id is None else self.get(SessionKey(tenant_id, session_id))

    def put(self, session: v1.Session) -> None:
        state = self._cache.change(SessionKey(session.tenant_id, session.session_id))
        if not state.exists:
            state.exists = True
            state.change_row(update_time=_begin_time(session) or self._clock() // 1_000)
        digest = metadata_digest(session.metadata)
        if digest != state.row.metadata_digest:
            state.metadata, state.stale_metadata = dict(session.metadata), True
        state.change_row(
            user_id=session.user_id,
            state=session.state,
            agent=session.agent,
            metadata_digest=digest,
            search=search_text(session),
            active_turn_id=session.active_turn_id,
            body=_body(session),
        )

    def delete(self, key: SessionKey) -> None:
        self._cache.find_existing(key)
        self._cache.save()
        for statement in _DELETE:
            self._connection.execute(statement, {"tenant": key.tenant_id, "session": key.session_id})
        self._cache.change(key).clear()

    def set_memory(self, key: SessionKey, memory: bytes) -> None:
        self._cache.change_existing(key).set_memory(memory)

    def advance_fence(self, key: SessionKey) -> int:
        state = self._cache.change_existing(key)
        state.change_row(fence=state.row.fence + 1)
        return state.row.fence


class SqlTx(Tx):
    """See the contract."""

    def __init__(self, connection: Connection, cache: Cache, logs: Logs, clock: Clock) -> None:
        self._logs = logs
        self.sessions = SqlSessionRows(connection, cache, clock)
        self.turns = SqlTurnRows(connection, cache)
        self.inputs = SqlInputRows(connection, cache)
        self.requests = SqlRequestRows(connection, cache, clock)

    def append(self, key: SessionKey, events: Iterable[v1.Event], fence: Fence | None) -> int:
        return self._logs.append(key, events, fence)

    def trim(self, key: SessionKey, keep_events: int, keep_since: int) -> int:
        return self._logs.trim(key, keep_events, keep_since)


def _session(row: SessionRow) -> v1.Session:
    return read_session(row.body, row.latest_sequence, row.oldest_sequence, row.update_time)


def _begin_time(session: v1.Session) -> int:
    return session.update_time.ToMicroseconds() or session.create_time.ToMicroseconds()


def _body(session: v1.Session) -> bytes:
    stored = v1.Session()
    stored.CopyFrom(session)
    stored.ClearField("latest_sequence")
    stored.ClearField("oldest_sequence")
    stored.ClearField("update_time")
    return stored.SerializeToString()
