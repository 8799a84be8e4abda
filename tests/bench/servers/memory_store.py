"""A store without a log on disk: what Karta costs when nothing is kept. For benchmarks alone: a unit that fails is
not undone, and a session's past cannot be read."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import (
    Claim,
    Commit,
    EventReader,
    Fence,
    Frames,
    InputReader,
    InputRows,
    Page,
    Recorded,
    RequestRows,
    SessionFilter,
    SessionKey,
    SessionReader,
    SessionRows,
    Store,
    TurnReader,
    TurnRows,
    Tx,
    Unit,
)

T = TypeVar("T")
Listener = Callable[[Sequence[Commit]], None]
_MAX_TURNS = 256


class MemoryStore(Store):
    """All state in dictionaries; every write is done, and seen, when the call returns."""

    def __init__(self) -> None:
        self.rows: dict[SessionKey, v1.Session] = {}
        self.turn_rows: dict[tuple[SessionKey, str], v1.Turn] = {}
        self.input_rows: dict[str, v1.InputRequest] = {}
        self.memories: dict[SessionKey, bytes] = {}
        self.fences: dict[SessionKey, int] = {}
        self.pending: dict[SessionKey, Commit] = {}
        self._listeners: list[Listener] = []
        self.sessions = _Sessions(self)
        self.turns = _Turns(self)
        self.inputs = _Inputs(self)
        self.requests = _Requests()
        self.events = _Events()

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def write(self, unit: Unit[T], *sessions: SessionKey) -> T:
        result = unit(_View(self))
        self._commit()
        return result

    async def append(self, key: SessionKey, events: Sequence[v1.Event], fence: Fence | None) -> int:
        last = self.add(key, events)
        self._commit()
        return last

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def commit_of(self, key: SessionKey) -> Commit:
        """Return what the write at hand changes in a session."""
        return self.pending.setdefault(key, Commit(key))

    def add(self, key: SessionKey, events: Iterable[v1.Event]) -> int:
        """Number, frame and announce events, and forget them."""
        session = self.rows[key]
        first = session.latest_sequence + 1
        seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
        kept = []
        for sequence, event in enumerate(events, first):
            event.sequence = session.latest_sequence = sequence
            event.session_id = key.session_id
            event.create_time.seconds, event.create_time.nanos = seconds, nanos
            kept.append(event)
        if kept:
            commit = self.commit_of(key)
            before = commit.frames or Frames(b"", first, first - 1)
            data = v1.EventFrame(events=kept).SerializeToString()
            commit.frames = Frames(before.data + data, before.first, session.latest_sequence)
        return session.latest_sequence

    def _commit(self) -> None:
        commits, self.pending = list(self.pending.values()), {}
        for listener in self._listeners if commits else ():
            listener(commits)


class _View(Tx):
    """The store inside of a unit, where rows are read at once."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.sessions = _SessionRows(store)
        self.turns = _TurnRows(store)
        self.inputs = _InputRows(store)
        self.requests = store.requests

    def append(self, key: SessionKey, events: Iterable[v1.Event], fence: Fence | None) -> int:
        return self._store.add(key, events)

    def trim(self, key: SessionKey, keep_events: int, keep_since: int) -> int:
        return 1


class _Rows:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store


class _SessionRows(_Rows, SessionRows):
    def get(self, key: SessionKey) -> v1.Session | None:
        return _copy(self._store.rows.get(key))

    def find_latest(self, tenant_id: str, user_id: str, metadata: dict[str, str]) -> v1.Session | None:
        return None

    def put(self, session: v1.Session) -> None:
        key = SessionKey(session.tenant_id, session.session_id)
        before = self._store.rows.get(key)
        kept = self._store.rows[key] = _copy(session)
        kept.latest_sequence = before.latest_sequence if before else 0

    def delete(self, key: SessionKey) -> None:
        del self._store.rows[key]

    def set_memory(self, key: SessionKey, memory: bytes) -> None:
        self._store.memories[key] = memory

    def advance_fence(self, key: SessionKey) -> int:
        number = self._store.fences[key] = self._store.fences.get(key, 0) + 1
        return number


class _TurnRows(_Rows, TurnRows):
    def get(self, key: SessionKey, turn_id: str) -> v1.Turn | None:
        return _copy(self._store.turn_rows.get((key, turn_id)))

    def put(self, turn: v1.Turn, *, owner: str | None = None, fence: int | None = None) -> None:
        rows = self._store.turn_rows
        rows[SessionKey(turn.tenant_id, turn.session_id), turn.turn_id] = _copy(turn)
        while len(rows) > _MAX_TURNS:
            del rows[next(iter(rows))]

    def next_queued(self, key: SessionKey) -> v1.Turn | None:
        return None

    def claimable(self, limit: int) -> list[v1.Turn]:
        waiting = [turn for turn in self._store.turn_rows.values() if turn.state == v1.TURN_STATE_QUEUED]
        return [_copy(turn) for turn in waiting[:limit]]

    def claims(self) -> list[Claim]:
        return []


class _InputRows(_Rows, InputRows):
    def get(self, tenant_id: str, input_request_id: str) -> v1.InputRequest | None:
        return _copy(self._store.input_rows.get(input_request_id))

    def put(self, request: v1.InputRequest) -> None:
        self._store.input_rows[request.input_request_id] = _copy(request)
        self._store.commit_of(SessionKey(request.tenant_id, request.session_id)).inputs.append(request)

    def pending(self, key: SessionKey, turn_id: str) -> list[v1.InputRequest]:
        asked = (request for request in self._store.input_rows.values() if request.turn_id == turn_id)
        return [_copy(request) for request in asked if request.state == v1.INPUT_STATE_PENDING]


class _Requests(RequestRows):
    def get(self, tenant_id: str, principal: str, request_id: str) -> Recorded | None:
        return None

    def put(self, tenant_id: str, principal: str, request_id: str, recorded: Recorded) -> None:
        """Not kept."""

    def expire(self) -> int:
        return 0


class _Sessions(_Rows, SessionReader):
    async def get(self, key: SessionKey) -> v1.Session | None:
        return _copy(self._store.rows.get(key))

    async def page(self, tenant_id: str, where: SessionFilter, page: Page) -> tuple[list[v1.Session], str]:
        raise _unread()

    async def outgrown(
        self, behind: SessionKey | None, keep_events: int, keep_since: int, limit: int
    ) -> tuple[list[SessionKey], SessionKey | None]:
        return [], None

    async def memory(self, key: SessionKey) -> bytes:
        return self._store.memories.get(key, b"")


class _Turns(_Rows, TurnReader):
    async def get(self, key: SessionKey, turn_id: str) -> v1.Turn | None:
        return _copy(self._store.turn_rows.get((key, turn_id)))

    async def page(self, key: SessionKey, states: Sequence[int], page: Page) -> tuple[list[v1.Turn], str]:
        raise _unread()


class _Inputs(_Rows, InputReader):
    async def get(self, tenant_id: str, input_request_id: str) -> v1.InputRequest | None:
        return _copy(self._store.input_rows.get(input_request_id))

    async def page(
        self, tenant_id: str, session_id: str, turn_id: str, states: Sequence[int], page: Page
    ) -> tuple[list[v1.InputRequest], str]:
        raise _unread()


class _Events(EventReader):
    async def read(self, key: SessionKey, after: int, max_bytes: int) -> Frames | None:
        raise _unread()


def _copy(message: "T | None") -> "T | None":
    if message is None:
        return None
    copy = type(message)()
    copy.CopyFrom(message)  # type: ignore[attr-defined]
    return copy


def _unread() -> KartaError:
    return KartaError(v1.ERROR_REASON_STORE_UNAVAILABLE, "The store of the benchmark keeps no log; nothing is read.")
