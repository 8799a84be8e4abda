"""Reading, beside the writer: on connections that cannot write."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Select, bindparam, case, literal, select, tuple_

from karta import v1
from karta_server import framing
from karta_server.storage.contract import (
    PAGE_BYTES,
    EventReader,
    Frames,
    InputReader,
    Page,
    Recorded,
    RequestReader,
    SessionFilter,
    SessionKey,
    SessionReader,
    TurnReader,
)
from karta_server.storage.sql import cursors, tables
from karta_server.storage.sql.dialect import Query
from karta_server.storage.sql.logs import Clock
from karta_server.storage.sql.read_connections import ReadConnections
from karta_server.storage.sql.request_rows import GET_REQUEST, expired_before
from karta_server.storage.sql.rows import read_session

_sessions = tables.sessions.c
_metadata = tables.session_metadata.c
_memories = tables.session_memories.c
_turns = tables.turns.c
_inputs = tables.inputs.c
_chunks = tables.event_chunks.c

_ITEM_OVERHEAD_BYTES: Final = 64
"""What a row's columns add to its body, and the list that it is in."""
_ITEMS_AT_FIRST: Final = 16

_SESSIONS = select(
    _sessions.body,
    _sessions.latest_sequence,
    _sessions.oldest_sequence,
    _sessions.update_time,
    _sessions.session_id,
)
_SESSION = Query(
    _SESSIONS.where(_sessions.tenant_id == bindparam("tenant"), _sessions.session_id == bindparam("session"))
)
_MEMORY = Query(
    select(_memories.memory).where(
        _memories.tenant_id == bindparam("tenant"), _memories.session_id == bindparam("session")
    )
)
_OLDEST_CHUNK_TIME = (
    select(_chunks.create_time)
    .where(_chunks.tenant_id == _sessions.tenant_id, _chunks.session_id == _sessions.session_id)
    .order_by(_chunks.last_sequence)
    .limit(1)
    .scalar_subquery()
)
_LOGS = Query(
    select(
        _sessions.tenant_id,
        _sessions.session_id,
        _sessions.latest_sequence - _sessions.oldest_sequence + 1,
        case((literal(0) < bindparam("since"), _OLDEST_CHUNK_TIME)),
    )
    .where(tuple_(_sessions.tenant_id, _sessions.session_id) > tuple_(bindparam("tenant"), bindparam("session")))
    .order_by(_sessions.tenant_id, _sessions.session_id)
    .limit(bindparam("limit"))
)
_TURN = Query(
    select(_turns.body).where(
        _turns.tenant_id == bindparam("tenant"),
        _turns.session_id == bindparam("session"),
        _turns.turn_id == bindparam("turn"),
    )
)
_INPUT = Query(
    select(_inputs.body).where(_inputs.tenant_id == bindparam("tenant"), _inputs.input_request_id == bindparam("input"))
)
_REQUEST = Query(GET_REQUEST)
_CHUNKS_BEHIND = Query(
    select(_chunks.first_sequence, _chunks.last_sequence, _chunks.frames)
    .where(
        _chunks.tenant_id == bindparam("tenant"),
        _chunks.session_id == bindparam("session"),
        _chunks.last_sequence > bindparam("after"),
    )
    .order_by(_chunks.last_sequence)
)


class SqlSessionReader(SessionReader):
    """See the contract."""

    def __init__(self, connections: ReadConnections) -> None:
        self._connections = connections

    async def get(self, key: SessionKey) -> v1.Session | None:
        rows = await self._connections.all(_SESSION, tenant=key.tenant_id, session=key.session_id)
        return read_session(*rows[0][:4]) if rows else None

    async def page(self, tenant_id: str, where: SessionFilter, page: Page) -> tuple[list[v1.Session], str]:
        statement = _matching(_SESSIONS.where(_sessions.tenant_id == tenant_id), tenant_id, where)
        if page.cursor:
            position = tuple_(_sessions.update_time, _sessions.session_id)
            statement = statement.where(position < cursors.decode("sessions", page.cursor, int, str))
        statement = statement.order_by(_sessions.update_time.desc(), _sessions.session_id.desc())
        rows, more = await _page(self._connections, statement, page.size)
        cursor = cursors.encode("sessions", *rows[-1][3:]) if more else ""
        return [read_session(*row[:4]) for row in rows], cursor

    async def outgrown(
        self, behind: SessionKey | None, keep_events: int, keep_since: int, limit: int
    ) -> tuple[list[SessionKey], SessionKey | None]:
        tenant_id, session_id = behind or ("", "")
        rows = await self._connections.all(_LOGS, tenant=tenant_id, session=session_id, since=keep_since, limit=limit)
        found = [
            SessionKey(*key)
            for *key, events, oldest_time in rows
            if 0 < keep_events < events or (oldest_time is not None and oldest_time < keep_since)
        ]
        return found, SessionKey(*rows[-1][:2]) if len(rows) == limit else None

    async def memory(self, key: SessionKey) -> bytes:
        rows = await self._connections.all(_MEMORY, tenant=key.tenant_id, session=key.session_id)
        return rows[0][0] if rows else b""


class SqlTurnReader(TurnReader):
    """See the contract."""

    def __init__(self, connections: ReadConnections) -> None:
        self._connections = connections

    async def get(self, key: SessionKey, turn_id: str) -> v1.Turn | None:
        rows = await self._connections.all(_TURN, tenant=key.tenant_id, session=key.session_id, turn=turn_id)
        return v1.Turn.FromString(rows[0][0]) if rows else None

    async def page(self, key: SessionKey, states: Sequence[int], page: Page) -> tuple[list[v1.Turn], str]:
        statement = select(_turns.body, _turns.first_sequence, _turns.turn_id).where(
            _turns.tenant_id == key.tenant_id, _turns.session_id == key.session_id
        )
        if states:
            statement = statement.where(_turns.state.in_(states))
        if page.cursor:
            position = tuple_(_turns.first_sequence, _turns.turn_id)
            statement = statement.where(position < cursors.decode("turns", page.cursor, int, str))
        statement = statement.order_by(_turns.first_sequence.desc(), _turns.turn_id.desc())
        rows, more = await _page(self._connections, statement, page.size)
        cursor = cursors.encode("turns", *rows[-1][1:]) if more else ""
        return [v1.Turn.FromString(row[0]) for row in rows], cursor


class SqlInputReader(InputReader):
    """See the contract."""

    def __init__(self, connections: ReadConnections) -> None:
        self._connections = connections

    async def get(self, tenant_id: str, input_request_id: str) -> v1.InputRequest | None:
        rows = await self._connections.all(_INPUT, tenant=tenant_id, input=input_request_id)
        return v1.InputRequest.FromString(rows[0][0]) if rows else None

    async def page(
        self, tenant_id: str, session_id: str, turn_id: str, states: Sequence[int], page: Page
    ) -> tuple[list[v1.InputRequest], str]:
        statement = select(_inputs.body, _inputs.input_request_id).where(_inputs.tenant_id == tenant_id)
        if session_id:
            statement = statement.where(_inputs.session_id == session_id)
        if turn_id:
            statement = statement.where(_inputs.turn_id == turn_id)
        if states:
            statement = statement.where(_inputs.state.in_(states))
        if page.cursor:
            (behind,) = cursors.decode("inputs", page.cursor, str)
            statement = statement.where(_inputs.input_request_id < behind)
        rows, more = await _page(self._connections, statement.order_by(_inputs.input_request_id.desc()), page.size)
        cursor = cursors.encode("inputs", rows[-1][1]) if more else ""
        return [v1.InputRequest.FromString(row[0]) for row in rows], cursor


class SqlRequestReader(RequestReader):
    """See the contract."""

    def __init__(self, connections: ReadConnections, clock: Clock) -> None:
        self._connections = connections
        self._clock = clock

    async def get(self, tenant_id: str, principal: str, request_id: str) -> Recorded | None:
        key = {"tenant": tenant_id, "principal": principal, "request": request_id}
        rows = await self._connections.all(_REQUEST, **key, after=expired_before(self._clock))
        return Recorded(*rows[0]) if rows else None


class SqlEventReader(EventReader):
    """See the contract."""

    def __init__(self, connections: ReadConnections) -> None:
        self._connections = connections

    async def read(self, key: SessionKey, after: int, max_bytes: int) -> Frames | None:
        parts: list[bytes] = []
        begin, last, room = after + 1, after, max_bytes
        chunks = self._connections.stream(_CHUNKS_BEHIND, tenant=key.tenant_id, session=key.session_id, after=after)
        async with chunks as rows:
            async for first, behind, frames in rows:
                if not parts and first > begin:  # What was in between is trimmed.
                    begin, last = first, first - 1
                start = framing.skip(frames, last + 1 - first)
                size = len(frames) - start
                if size > room:
                    break
                parts.append(frames[start:])
                last, room = behind, room - size
            else:
                return Frames(b"".join(parts), begin, last) if parts else None
        # Of the chunk that is too large, what there is room for; all of an event if it is the first.
        count, end = framing.fit(frames, start, room, at_least=0 if parts else 1)
        parts.append(frames[start:end])
        return Frames(b"".join(parts), begin, last + count)


async def _page(connections: ReadConnections, statement: Select[Any], size: int) -> tuple[Sequence[Any], bool]:
    """Return the rows of a page, whose first column is the item, and whether there are more behind."""
    page: list[Any] = []
    room = PAGE_BYTES
    async with connections.stream(Query(statement.limit(size + 1)), ahead=_ITEMS_AT_FIRST) as rows:
        async for row in rows:
            room -= len(row[0]) + _ITEM_OVERHEAD_BYTES
            if page and (room < 0 or len(page) == size):
                return page, True
            page.append(row)
    return page, False


def _matching(statement: Select[Any], tenant_id: str, where: SessionFilter) -> Select[Any]:
    wanted = ((_sessions.user_id, where.user_id), (_sessions.agent, where.agent))
    for column, value in wanted:
        if value:
            statement = statement.where(column == value)
    if where.states:
        statement = statement.where(_sessions.state.in_(where.states))
    if where.query:
        statement = statement.where(_sessions.search.contains(where.query.casefold(), autoescape=True))
    for key, value in where.metadata.items():
        having = select(_metadata.session_id).where(
            _metadata.tenant_id == tenant_id, _metadata.key == key, _metadata.value == value
        )
        statement = statement.where(_sessions.session_id.in_(having))
    return statement
