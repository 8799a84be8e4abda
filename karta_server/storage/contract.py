"""What a backend has to do to hold Karta's state.

Messages of karta.v1 go in and come out; events are stored as the bytes that
are streamed. A write is a *unit*: a plain function over `Tx` that the store
runs, with others, in one transaction. A unit touches nothing but its `Tx`, may
run twice, and fails alone. What it returns comes back when it is durable.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from karta import v1

T = TypeVar("T")


class SessionKey(NamedTuple):
    """Names a session."""

    tenant_id: str
    session_id: str


class Fence(NamedTuple):
    """Proof of the right to write for a turn: holds while the turn is the session's active one and
    `number` is the session's fence."""

    turn_id: str
    number: int


class Claim(NamedTuple):
    """A turn that an instance runs."""

    session: SessionKey
    turn_id: str
    owner: str
    fence: int


class Recorded(NamedTuple):
    """The first answer to a request_id."""

    fingerprint: bytes
    response: bytes
    session_id: str = ""
    """The session that the answer tells of, and that it is deleted with. Not read back."""


class Frames(NamedTuple):
    """Consecutive events of one session as they are streamed: field 1 of EventFrame, repeated."""

    data: bytes
    first: int
    last: int
    turn_id: str = ""
    """The turn that all of them belong to; empty when that is not one, or not known."""
    finishes: bool = False
    """Whether the last one is the turn_finished of `turn_id`."""


@dataclass
class Commit:
    """What a transaction changed in one session."""

    session: SessionKey
    frames: Frames | None = None
    """The new events, if any."""
    inputs: list[v1.InputRequest] = field(default_factory=list)
    """Input requests as they are now, in the order of their change."""
    deleted: bool = False


PAGE_BYTES = 1024 * 1024
"""A page of a list ends before its items exceed this, unless one item alone does."""


class Page(NamedTuple):
    """Which part of a list: at most `size` items, and PAGE_BYTES, behind the cursor (empty: from the beginning)."""

    size: int
    cursor: str = ""


class SessionFilter(NamedTuple):
    """Which sessions; empty fields do not filter."""

    metadata: dict[str, str]
    user_id: str = ""
    states: tuple[int, ...] = ()
    agent: str = ""
    query: str = ""


class SessionRows(ABC):
    """Sessions inside of a unit."""

    @abstractmethod
    def get(self, key: SessionKey) -> v1.Session | None:
        """Return a copy of the session as this unit sees it."""

    @abstractmethod
    def find_latest(self, tenant_id: str, user_id: str, metadata: dict[str, str]) -> v1.Session | None:
        """Return the ACTIVE session of the user with exactly this metadata and the newest activity."""

    @abstractmethod
    def put(self, session: v1.Session) -> None:
        """Insert or replace. `latest_sequence`, `oldest_sequence` and `update_time` of existing sessions are
        kept by the store: they follow the log and are ignored here."""

    @abstractmethod
    def delete(self, key: SessionKey) -> None:
        """Remove the session with its turns, inputs and log."""

    @abstractmethod
    def set_memory(self, key: SessionKey, memory: bytes) -> None:
        """Keep what the harness needs to go on with the conversation."""

    @abstractmethod
    def advance_fence(self, key: SessionKey) -> int:
        """Add one to the session's fence and return it: older fences hold no more."""


class TurnRows(ABC):
    """Turns inside of a unit. Writing for a session that is not there raises SESSION_NOT_FOUND, here and in
    the rows that follow."""

    @abstractmethod
    def get(self, key: SessionKey, turn_id: str) -> v1.Turn | None:
        """Return a copy of the turn."""

    @abstractmethod
    def put(self, turn: v1.Turn, *, owner: str | None = None, fence: int | None = None) -> None:
        """Insert or replace. `owner` and `fence` say who runs it; None leaves them as they are ("" and 0 in
        a new turn). A second RUNNING or INPUT_REQUIRED turn of a session breaks a constraint and fails
        the unit."""

    @abstractmethod
    def next_queued(self, key: SessionKey) -> v1.Turn | None:
        """Return the session's QUEUED turn with the smallest first_sequence."""

    @abstractmethod
    def claimable(self, limit: int) -> list[v1.Turn]:
        """Return, of sessions without an active turn, the next queued turn of each, oldest first.

        The unit that calls this may change their sessions without having named them.
        """

    @abstractmethod
    def claims(self) -> list[Claim]:
        """Return every RUNNING or INPUT_REQUIRED turn of every tenant, with who holds it."""


class InputRows(ABC):
    """Input requests inside of a unit."""

    @abstractmethod
    def get(self, tenant_id: str, input_request_id: str) -> v1.InputRequest | None:
        """Return a copy of the input request."""

    @abstractmethod
    def put(self, request: v1.InputRequest) -> None:
        """Insert or replace; part of the session's `Commit.inputs`."""

    @abstractmethod
    def pending(self, key: SessionKey, turn_id: str) -> list[v1.InputRequest]:
        """Return the turn's PENDING input requests in the order of their making."""


class RequestRows(ABC):
    """Answers given to request_ids, inside of a unit."""

    @abstractmethod
    def get(self, tenant_id: str, principal: str, request_id: str) -> Recorded | None:
        """Return the answer given before, if it is younger than a day."""

    @abstractmethod
    def put(self, tenant_id: str, principal: str, request_id: str, recorded: Recorded) -> None:
        """Keep the answer."""

    @abstractmethod
    def expire(self) -> int:
        """Remove up to 1,000 answers older than a day; return how many there were."""


class Tx(ABC):
    """A transaction as a unit sees it."""

    sessions: SessionRows
    turns: TurnRows
    inputs: InputRows
    requests: RequestRows

    @abstractmethod
    def trim(self, key: SessionKey, keep_events: int, keep_since: int) -> int:
        """Remove the oldest events of a log: those beyond the newest `keep_events` (0: no such bound) and those
        recorded before `keep_since` (microseconds since 1970; 0: no such bound), as far as whole chunks go
        and never the newest event. Sets `oldest_sequence` of the session and returns it. Of a long log it
        removes a bounded part, so that others can write meanwhile: call it again while that grows."""

    @abstractmethod
    def append(self, key: SessionKey, events: Iterable[v1.Event], fence: Fence | None) -> int:
        """Append events to the session's log and return the sequence of the last one.

        Sets `sequence`, `session_id` and `create_time` on the events themselves.
        Raises KartaError FENCED when `fence` no longer holds, SESSION_NOT_FOUND.
        """


Unit = Callable[[Tx], T]


class SessionReader(ABC):
    """Reading sessions."""

    @abstractmethod
    async def get(self, key: SessionKey) -> v1.Session | None:
        """Return the session."""

    @abstractmethod
    async def page(self, tenant_id: str, where: SessionFilter, page: Page) -> tuple[list[v1.Session], str]:
        """Return sessions, newest activity first, and the cursor of the next page or ""."""

    @abstractmethod
    async def outgrown(
        self, behind: SessionKey | None, keep_events: int, keep_since: int, limit: int
    ) -> tuple[list[SessionKey], SessionKey | None]:
        """Look at up to `limit` sessions of all tenants, in the order of their keys; return those whose log may
        have something that `Tx.trim` with these bounds removes, and where to go on or None."""

    @abstractmethod
    async def memory(self, key: SessionKey) -> bytes:
        """Return what set_memory kept, or b""."""


class TurnReader(ABC):
    """Reading turns."""

    @abstractmethod
    async def get(self, key: SessionKey, turn_id: str) -> v1.Turn | None:
        """Return the turn."""

    @abstractmethod
    async def page(self, key: SessionKey, states: Sequence[int], page: Page) -> tuple[list[v1.Turn], str]:
        """Return turns, newest first, and the cursor of the next page or ""."""


class InputReader(ABC):
    """Reading input requests."""

    @abstractmethod
    async def get(self, tenant_id: str, input_request_id: str) -> v1.InputRequest | None:
        """Return the input request."""

    @abstractmethod
    async def page(
        self, tenant_id: str, session_id: str, turn_id: str, states: Sequence[int], page: Page
    ) -> tuple[list[v1.InputRequest], str]:
        """Return input requests, newest first, and the cursor of the next page or "". Empty ids do not filter."""


class RequestReader(ABC):
    """Reading answers given to request_ids."""

    @abstractmethod
    async def get(self, tenant_id: str, principal: str, request_id: str) -> Recorded | None:
        """Return the answer given before, if it is younger than a day."""


class EventReader(ABC):
    """Reading logs."""

    @abstractmethod
    async def read(self, key: SessionKey, after: int, max_bytes: int) -> Frames | None:
        """Return the events behind `after`, at least one and about `max_bytes`; None when there are none.

        Of a log that was trimmed it returns what is kept.
        """


class Store(ABC):
    """The state of one server. `open` before use; every failure to reach the backend is
    KartaError STORE_UNAVAILABLE."""

    sessions: SessionReader
    turns: TurnReader
    inputs: InputReader
    requests: RequestReader
    events: EventReader

    @abstractmethod
    async def open(self) -> None:
        """Connect. Raises KartaError SCHEMA_TOO_NEW. Brings an older schema up to date."""

    @abstractmethod
    async def close(self) -> None:
        """Write what is pending and let go; idempotent."""

    @abstractmethod
    async def write(self, unit: Unit[T], *sessions: SessionKey) -> T:
        """Run a unit and return its result when it is durable.

        `sessions` are all that the unit changes. An exception of the unit rolls
        it back alone and is raised here. Units of one session run in the order
        of their calls. Cancelling the caller does not stop the unit.
        """

    @abstractmethod
    async def append(self, key: SessionKey, events: Sequence[v1.Event], fence: Fence | None) -> int:
        """`Tx.append` alone, without the cost of a unit: the hot path. Ordered with the units."""

    @abstractmethod
    def subscribe(self, listener: Callable[[Sequence[Commit]], None]) -> Callable[[], None]:
        """Call `listener` on the event loop after every commit, before its writers go on; it must not
        block. Returns a function that ends it."""
