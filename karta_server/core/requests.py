"""Idempotency: a request_id is answered once.

The answer is recorded in the transaction of the change itself, so a request is
never half done: the same id either finds the answer or does the work.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from karta import v1
from karta_server.core.caller import Caller
from karta_server.errors import KartaError
from karta_server.storage.contract import Recorded, Store, Tx

log = logging.getLogger(__name__)

_EXPIRY_INTERVAL_SECONDS = 3600.0

R = TypeVar("R", bound=Message)


class MutatingRequest(Protocol):
    """A request message with a request_id."""

    tenant_id: str
    request_id: str

    def CopyFrom(self, other_msg: Any) -> None: ...  # noqa: N802

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...  # noqa: N802


async def answered(store: Store, caller: Caller, request: MutatingRequest, answer: type[R]) -> R | None:
    """Return the answer that the request got before, None when it is new.

    To be asked before anything else, so that a repeated request gets its answer
    whatever has changed since. Raises KartaError REQUEST_ID_REUSED.
    """
    if not request.request_id:
        return None
    known = await store.requests.get(caller.tenant_id, caller.principal, request.request_id)
    return None if known is None else _answer(known, caller, request, answer)


def once(tx: Tx, caller: Caller, request: MutatingRequest, answer: type[R], act: Callable[[], R]) -> R:
    """Return the recorded answer of the request, or do the work and record its answer.

    Raises KartaError REQUEST_ID_REUSED when the id came with another request.
    """
    if not request.request_id:
        return act()
    known = tx.requests.get(caller.tenant_id, caller.principal, request.request_id)
    if known is not None:
        return _answer(known, caller, request, answer)
    response = act()
    recorded = Recorded(_fingerprint(caller, request), response.SerializeToString(), _session_of(response))
    tx.requests.put(caller.tenant_id, caller.principal, request.request_id, recorded)
    return response


def _session_of(response: Message) -> str:
    """Return the session whose content is in an answer: with the session, its answers are deleted too."""
    for field in ("session", "turn", "input_request"):
        if field in response.DESCRIPTOR.fields_by_name:
            session_id: str = getattr(response, field).session_id
            return session_id
    return ""


def _answer(known: Recorded, caller: Caller, request: MutatingRequest, answer: type[R]) -> R:
    if known.fingerprint != _fingerprint(caller, request):
        raise KartaError(
            v1.ERROR_REASON_REQUEST_ID_REUSED,
            f"request_id {request.request_id!r} was used for another request; choose a new one.",
            request_id=request.request_id,
        )
    return answer.FromString(known.response)


def _fingerprint(caller: Caller, request: MutatingRequest) -> bytes:
    """Return what tells one request from another. The caller's own tenant may be named or not."""
    named = type(request)()
    named.CopyFrom(request)
    named.tenant_id = caller.tenant_id
    body = named.SerializeToString(deterministic=True)
    return hashlib.sha256(type(request).__name__.encode() + b"\0" + body).digest()


class Expiry:
    """Removes answers older than a day, now and then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="expire requests")

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                removed = 1
                while removed:
                    removed = await self._store.write(lambda tx: tx.requests.expire())
            except KartaError as error:
                log.warning("cannot remove old answers, trying again later: %s", error.message)
            await asyncio.sleep(_EXPIRY_INTERVAL_SECONDS)
