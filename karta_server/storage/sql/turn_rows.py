"""Turns and input requests inside of a unit."""

from sqlalchemy import Connection, and_, bindparam, exists, or_, select

from karta import v1
from karta_server.storage.contract import Claim, InputRows, SessionKey, TurnRows
from karta_server.storage.sql import dialect, tables
from karta_server.storage.sql.logs import Logs

_turns = tables.turns.c
_other = tables.turns.alias("other").c
_inputs = tables.inputs.c

_OF_SESSION = (_turns.tenant_id == bindparam("tenant"), _turns.session_id == bindparam("session"))
_IN_SAME_SESSION = (_other.tenant_id == _turns.tenant_id, _other.session_id == _turns.session_id)
_GET = select(_turns.body).where(*_OF_SESSION, _turns.turn_id == bindparam("turn"))
_PUT = {
    (keeps_owner, keeps_fence): dialect.upsert(tables.turns, keep=["owner"] * keeps_owner + ["fence"] * keeps_fence)
    for keeps_owner in (False, True)
    for keeps_fence in (False, True)
}
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
_PUT_INPUT = dialect.upsert(tables.inputs)
_PENDING = (
    select(_inputs.body)
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

    def __init__(self, connection: Connection, logs: Logs) -> None:
        self._connection = connection
        self._logs = logs

    def get(self, key: SessionKey, turn_id: str) -> v1.Turn | None:
        body = self._connection.execute(_GET, _parameters(key, turn_id)).scalar()
        return None if body is None else v1.Turn.FromString(body)

    def put(self, turn: v1.Turn, *, owner: str | None = None, fence: int | None = None) -> None:
        self._logs.change_existing(SessionKey(turn.tenant_id, turn.session_id))
        row = {
            "tenant_id": turn.tenant_id,
            "session_id": turn.session_id,
            "turn_id": turn.turn_id,
            "state": turn.state,
            "first_sequence": turn.first_sequence,
            "owner": owner or "",
            "fence": fence or 0,
            "create_time": turn.create_time.ToMicroseconds(),
            "body": turn.SerializeToString(),
        }
        self._connection.execute(_PUT[owner is None, fence is None], row)

    def next_queued(self, key: SessionKey) -> v1.Turn | None:
        body = self._connection.execute(_NEXT_QUEUED, _parameters(key)).scalar()
        return None if body is None else v1.Turn.FromString(body)

    def claimable(self, limit: int) -> list[v1.Turn]:
        bodies = self._connection.execute(_CLAIMABLE, {"limit": limit}).scalars()
        return [v1.Turn.FromString(body) for body in bodies]

    def claims(self) -> list[Claim]:
        rows = self._connection.execute(_CLAIMS)
        return [Claim(SessionKey(tenant, session), turn, owner, fence) for tenant, session, turn, owner, fence in rows]


class SqlInputRows(InputRows):
    """See the contract. Ids are UUIDv7, so their order is that of their making."""

    def __init__(self, connection: Connection, logs: Logs) -> None:
        self._connection = connection
        self._logs = logs

    def get(self, tenant_id: str, input_request_id: str) -> v1.InputRequest | None:
        body = self._connection.execute(_GET_INPUT, {"tenant": tenant_id, "input": input_request_id}).scalar()
        return None if body is None else v1.InputRequest.FromString(body)

    def put(self, request: v1.InputRequest) -> None:
        log = self._logs.change_existing(SessionKey(request.tenant_id, request.session_id))
        body = request.SerializeToString()
        row = {
            "tenant_id": request.tenant_id,
            "input_request_id": request.input_request_id,
            "session_id": request.session_id,
            "turn_id": request.turn_id,
            "state": request.state,
            "body": body,
        }
        self._connection.execute(_PUT_INPUT, row)
        log.inputs.pop(request.input_request_id, None)
        log.inputs[request.input_request_id] = v1.InputRequest.FromString(body)

    def pending(self, key: SessionKey, turn_id: str) -> list[v1.InputRequest]:
        bodies = self._connection.execute(_PENDING, _parameters(key, turn_id)).scalars()
        return [v1.InputRequest.FromString(body) for body in bodies]


def _parameters(key: SessionKey, turn_id: str | None = None) -> dict[str, str]:
    parameters = {"tenant": key.tenant_id, "session": key.session_id}
    return parameters if turn_id is None else {**parameters, "turn": turn_id}
