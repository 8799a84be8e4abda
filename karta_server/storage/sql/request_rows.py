"""Answers given to request_ids, inside of a unit."""

from typing import Final

from sqlalchemy import Connection, bindparam, delete, select, tuple_

from karta_server.storage.contract import Recorded, RequestRows
from karta_server.storage.sql import tables
from karta_server.storage.sql.cache import Cache, RequestRow
from karta_server.storage.sql.logs import Clock

LIFETIME_MICROS: Final = 24 * 60 * 60 * 1_000_000
_EXPIRED_AT_ONCE: Final = 1_000

_requests = tables.requests.c
GET_REQUEST = select(_requests.fingerprint, _requests.response).where(
    _requests.tenant_id == bindparam("tenant"),
    _requests.principal == bindparam("principal"),
    _requests.request_id == bindparam("request"),
    _requests.create_time > bindparam("after"),
)
_KEY = tuple_(_requests.tenant_id, _requests.principal, _requests.request_id)
_EXPIRED = (
    select(_requests.tenant_id, _requests.principal, _requests.request_id)
    .where(_requests.create_time <= bindparam("after"))
    .order_by(_requests.create_time)
    .limit(_EXPIRED_AT_ONCE)
)
_EXPIRE = delete(tables.requests).where(_KEY.in_(_EXPIRED))


class SqlRequestRows(RequestRows):
    """See the contract."""

    def __init__(self, connection: Connection, cache: Cache, clock: Clock) -> None:
        self._connection = connection
        self._cache = cache
        self._clock = clock

    def get(self, tenant_id: str, principal: str, request_id: str) -> Recorded | None:
        row = self._cache.find_answer((tenant_id, principal, request_id))
        if row is not None:
            return Recorded(row.fingerprint, row.response)
        key = {"tenant": tenant_id, "principal": principal, "request": request_id}
        found = self._connection.execute(GET_REQUEST, {**key, "after": expired_before(self._clock)}).first()
        return None if found is None else Recorded(*found)

    def put(self, tenant_id: str, principal: str, request_id: str, recorded: Recorded) -> None:
        self._cache.put_answer(
            RequestRow(tenant_id, principal, request_id, *recorded, create_time=self._clock() // 1_000)
        )

    def expire(self) -> int:
        self._cache.save()
        return self._connection.execute(_EXPIRE, {"after": expired_before(self._clock)}).rowcount


def expired_before(clock: Clock) -> int:
    """Return the time, in microseconds, at which answers were given that are not kept any more."""
    return clock() // 1_000 - LIFETIME_MICROS
