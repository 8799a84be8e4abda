"""Idempotency: a request_id is answered once.

The answer is recorded in the transaction of the change itself, so a request is
never half done: the same id either finds the answer or does the work.
"""

import hashlib
from collections.abc import Callable
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from karta import v1
from karta_server.core.caller import Caller
from karta_server.errors import KartaError
from karta_server.storage.contract import Recorded, Tx

R = TypeVar("R", bound=Message)


class MutatingRequest(Protocol):
    """A request message with a request_id."""

    request_id: str

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...  # noqa: N802


def once(tx: Tx, caller: Caller, request: MutatingRequest, answer: type[R], act: Callable[[], R]) -> R:
    """Return the recorded answer of the request, or do the work and record its answer.

    Raises KartaError REQUEST_ID_REUSED when the id came with another request.
    """
    if not request.request_id:
        return act()
    body = request.SerializeToString(deterministic=True)
    fingerprint = hashlib.sha256(type(request).__name__.encode() + b"\0" + body).digest()
    known = tx.requests.get(caller.tenant_id, caller.principal, request.request_id)
    if known is None:
        response = act()
        recorded = Recorded(fingerprint, response.SerializeToString())
        tx.requests.put(caller.tenant_id, caller.principal, request.request_id, recorded)
        return response
    if known.fingerprint != fingerprint:
        raise KartaError(
            v1.ERROR_REASON_REQUEST_ID_REUSED,
            f"request_id {request.request_id!r} was used for another request; choose a new one.",
            request_id=request.request_id,
        )
    return answer.FromString(known.response)
