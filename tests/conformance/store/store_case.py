"""Rows for the store's conformance suite, and a clock that a test can move."""

import time
from typing import Any

from karta import v1
from karta_server.ids import new_id
from karta_server.storage.contract import Commit, SessionKey, Store, Tx

TENANT = "default"
DAY_SECONDS = 24 * 60 * 60


class Clock:
    """Nanoseconds since 1970; stands still until it is moved."""

    def __init__(self) -> None:
        self.now = time.time_ns()

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1_000_000_000)


def key(tenant_id: str = TENANT) -> SessionKey:
    return SessionKey(tenant_id, new_id())


def session(name: SessionKey, **fields: Any) -> v1.Session:
    return v1.Session(
        **{"tenant_id": name.tenant_id, "session_id": name.session_id, "state": v1.SESSION_STATE_ACTIVE} | fields
    )


def turn(name: SessionKey, **fields: Any) -> v1.Turn:
    defaults = {"turn_id": new_id(), "state": v1.TURN_STATE_QUEUED}
    return v1.Turn(**{"tenant_id": name.tenant_id, "session_id": name.session_id} | defaults | fields)


def input_request(name: SessionKey, **fields: Any) -> v1.InputRequest:
    defaults = {"input_request_id": new_id(), "turn_id": "turn", "state": v1.INPUT_STATE_PENDING}
    return v1.InputRequest(**{"tenant_id": name.tenant_id, "session_id": name.session_id} | defaults | fields)


def texts(*values: str) -> list[v1.Event]:
    return [v1.Event(text=v1.TextDelta(text=value)) for value in values]


def events(frames: bytes) -> list[v1.Event]:
    """What a client reads from a stored frame."""
    return list(v1.EventFrame.FromString(frames).events)


async def create(store: Store, name: SessionKey | None = None, **fields: Any) -> SessionKey:
    name = name or key()
    await store.write(lambda tx: tx.sessions.put(session(name, **fields)), name)
    return name


async def put_turns(store: Store, *turns: v1.Turn, owner: str | None = None, fence: int | None = None) -> None:
    def unit(tx: Tx) -> None:
        for each in turns:
            tx.turns.put(each, owner=owner, fence=fence)

    await store.write(unit, *{SessionKey(each.tenant_id, each.session_id) for each in turns})


async def put_inputs(store: Store, *requests: v1.InputRequest) -> None:
    def unit(tx: Tx) -> None:
        for each in requests:
            tx.inputs.put(each)

    await store.write(unit, *{SessionKey(each.tenant_id, each.session_id) for each in requests})


def listen(store: Store) -> list[Commit]:
    """Collect what listeners hear from here on."""
    heard: list[Commit] = []
    store.subscribe(heard.extend)
    return heard
