"""Turns and input requests inside of a unit."""

from sqlalchemy import Connection, and_, bindparam, exists, or_, select

from karta import v1
from karta_server.storage.contract import Claim, InputRows, SessionKey, TurnRows
from karta_server.storage.sql import tables
from karta_server.storage.sql.cache import Cache
from karta_server.storage.sql.session_state import InputRow, SessionState, TurnRow

_turns = tables.turns.c
_other = tables.turns.alias("other").c
_inputs = tables.inputs.c

_OF_SESSION = (_turns.tenant_id == bindparam("tenant"), _turns.session_id == bindparam("session"))
_IN_SAME_SESSION = (_other.tenant_id == _turns.tenant_id, _other.session_id == _turns.session_id)
_GET = select(*tables.turns.c).where(*_OF_SESSION, _turns.turn_id == bindparam("turn"))
_NEXT_QUEUED = (
    select(_turns.body)
    .where(*_OF_SESSION, _turns.state == tables.QUEUED)
    .order_by(_turns.first_sequence, _turns.turn_id)
    .limit(1)
)
_ACTIVE_EXISTS = exists().where(*_IN_SAME_SESSION, _other.state.in_(tables.ACTIVE))
_EARLIER_EXISTS = exists().where(
    *_IN_SAME_SESSION,
    _other.state == tables.QUEUED,
    or_(
        _other.first_sequence < _turns.first_sequence,
        and_(_other.first_sequence == _turns.first_sequence, _other.turn_id < _turns.turn_id),
    ),
)
_CLAIMABLE = (
    select(_turns.body)
    .where(_turns.state == tables.QUEUED, ~_ACTIVE_EXISTS, ~_EARLIER_EXISTS)
    .order_by(_turns.create_time, _turns.turn_id)
    .limit(bindparam("limit"))
)
_CLAIMS = select(_turns.tenant_id, _turns.session_id, _turns.turn_id, _turns.owner, _turns.fence).where(
    _turns.state.in_(tables.ACTIVE)
)
_GET_INPUT = select(_inputs.body).where(
    _inputs.tenant_id == bindparam("tenant"), _inputs.input_request_id == bindparam("input")
)
_PENDING = (
    select(_inputs.input_request_id, _inputs.body)
    .where(
        _inputs.tenant_id == bindparam("tenant"),
        _inputs.session_id == bindparam("session"),
        _inputs.turn_id == bindparam("turn"),
        _inputs.state == v1.INPUT_STATE_PENDING,
    )
    .order_by(_inputs.input_request_id)
)


class SqlTurnRows(TurnRows):
    """See the contract."""

    def __init__(self, connection: Connection, cache: Cache) -> None:
        self._connection = connection
        self._cache = cache

    def get(self, key: SessionKey, turn_id: str) -> v1.Turn | None:
        row = self._find(self._cache.find(key), turn_id)
        return None if row is None else v1.Turn.FromString(row.body)

    def put(self, turn: v1.Turn, *, owner: str | None = None, fence: int | None = None) -> None:
        state = self._cache.change_existing(SessionKey(turn.tenant_id, turn.session_id))
        if owner is None or fence is None:
            before = self._find(state, turn.turn_id)
            owner = (before.owner if before else "") if owner is None else owner
            fence = (before.fence if before else 0) if fence is None else fence
        state.put_turn(
            TurnRow(
                turn.tenant_id,
                turn.session_id,
                turn.turn_id,
                turn.state,
                turn.first_sequence,
                owner,
                fence,
                turn.create_time.ToMicroseconds(),
                turn.SerializeToString(),
            )
        )

    def next_queued(self, key: SessionKey) -> v1.Turn | None:
        self._cache.expose()
        body = self._connection.execute(_NEXT_QUEUED, _parameters(key)).scalar()
        return None if body is None else v1.Turn.FromString(body)

    def claimable(self, limit: int) -> list[v1.Turn]:
        self._cache.expose()
        bodies = self._connection.execute(_CLAIMABLE, {"limit": limit}).scalars()
        return [v1.Turn.FromString(body) for body in bodies]

    def claims(self) -> list[Claim]:
        self._cache.expose()
        rows = self._connection.execute(_CLAIMS)
        return [Claim(SessionKey(tenant, session), turn, owner, fence) for tenant, session, turn, owner, fence in rows]

    def _find(self, state: SessionState, turn_id: str) -> TurnRow | None:
        row = state.turns.get(turn_id)
        if row is not None or turn_id > state.last_turn_id:
            return row
        found = self._connection.execute(_GET, _parameters(state.key, turn_id)).first()
        return None if found is None else TurnRow(*found)


class SqlInputRows(InputRows):
    """See the contract. Ids are UUIDv7, so their order is that of their making."""

    def __init__(self, connection: Connection, cache: Cache) -> None:
        self._connection = connection
        self._cache = cache

    def get(self, tenant_id: str, input_request_id: str) -> v1.InputRequest | None:
        row = self._cache.find_input(tenant_id, input_request_id)
        parameters = {"tenant": tenant_id, "input": input_request_id}
        body = row.body if row else self._connection.execute(_GET_INPUT, parameters).scalar()
        return None if body is None else v1.InputRequest.FromString(body)

    def put(self, request: v1.InputRequest) -> None:
        state = self._cache.change_existing(SessionKey(request.tenant_id, request.session_id))
        id_, body = request.input_request_id, request.SerializeToString()
        state.put_input(InputRow(request.tenant_id, id_, request.session_id, request.turn_id, request.state, body))
        state.resolved.pop(id_, None)
        state.resolved[id_] = v1.InputRequest.FromString(body)

    def pending(self, key: SessionKey, turn_id: str) -> list[v1.InputRequest]:
        state = self._cache.find(key)
        found = {id_: row.body for id_, row in state.inputs.items() if _waits(row, turn_id)}
        if not state.knows_inputs_of(turn_id):
            rows = self._connection.execute(_PENDING, _parameters(key, turn_id))
            found |= {id_: body for id_, body in rows if id_ not in state.inputs}
        return [v1.InputRequest.FromString(found[id_]) for id_ in sorted(found)]


def _waits(row: InputRow, turn_id: str) -> bool:
    return row.turn_id == turn_id and row.state == v1.INPUT_STATE_PENDING


def _parameters(key: SessionKey, turn_id: str | None = None) -> dict[str, str]:
    parameters = {"tenant": key.tenant_id, "session": key.session_id}
    return parameters if turn_id is None else {**parameters, "turn": turn_id}
