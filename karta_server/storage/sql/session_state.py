"""A session as the writer knows it: its row, what belongs to it, and what the transaction adds to its log."""

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import Commit, Frames, SessionKey

_ACTIVE: Final = frozenset({v1.TURN_STATE_RUNNING, v1.TURN_STATE_INPUT_REQUIRED})
_KEPT_MEMORY_BYTES: Final = 64 * 1024
_OWN_BYTES: Final = 2_048
"""About what a state takes without the bytes that others made."""


class SessionRow(NamedTuple):
    """A row of `sessions`."""

    tenant_id: str
    session_id: str
    user_id: str = ""
    state: int = 0
    agent: str = ""
    metadata_digest: bytes = b""
    search: str = ""
    active_turn_id: str = ""
    fence: int = 0
    latest_sequence: int = 0
    oldest_sequence: int = 1
    update_time: int = 0
    body: bytes = b""


class TurnRow(NamedTuple):
    """A row of `turns`."""

    tenant_id: str
    session_id: str
    turn_id: str
    state: int
    first_sequence: int
    owner: str
    fence: int
    create_time: int
    body: bytes

    @property
    def is_active(self) -> bool:
        """Whether the turn is the one that its session runs."""
        return self.state in _ACTIVE


class InputRow(NamedTuple):
    """A row of `inputs`."""

    tenant_id: str
    input_request_id: str
    session_id: str
    turn_id: str
    state: int
    body: bytes


@dataclass(slots=True)
class SessionState:
    """Rows are values and never changed, so that a copy can share them."""

    row: SessionRow
    exists: bool = False
    memory: bytes | None = None
    """None: not known."""
    metadata: dict[str, str] = field(default_factory=dict)
    turns: dict[str, TurnRow] = field(default_factory=dict)
    """The active one and what this transaction changed."""
    inputs: dict[str, InputRow] = field(default_factory=dict)
    """Those that wait, as far as known, and what this transaction changed."""
    active: str = ""
    """The turn that its row says is active."""
    last_turn_id: str = ""
    """No turn has a greater id."""
    last_asked_turn_id: str = ""
    """No input request has a greater turn_id."""
    asked_turn_id: str = ""
    """A turn whose waiting input requests are all in `inputs`."""

    frames: list[bytes] = field(default_factory=list)
    """What is to be appended to the log."""
    turn_id: str = ""
    """The turn that all frames belong to; empty when there is not just one."""
    finishes: bool = False
    """Whether the last frame is that turn's end."""
    resolved: dict[str, v1.InputRequest] = field(default_factory=dict)
    """Input requests that listeners are to hear of, in the order of their change."""
    deleted: bool = False

    stale_row: bool = False
    """Whether the database has another row; the same for what follows."""
    stale_metadata: bool = False
    stale_memory: bool = False
    stale_turns: set[str] = field(default_factory=set)
    stale_inputs: set[str] = field(default_factory=set)
    size: int = 0
    """What the cache counts for it."""

    @property
    def key(self) -> SessionKey:
        """Which session it is."""
        return SessionKey(self.row.tenant_id, self.row.session_id)

    def copy(self) -> "SessionState":
        """Return a copy that can change without this one."""
        made = copy(self)
        made.turns, made.inputs = dict(self.turns), dict(self.inputs)
        made.frames, made.resolved = list(self.frames), dict(self.resolved)
        made.stale_turns, made.stale_inputs = set(self.stale_turns), set(self.stale_inputs)
        return made

    def change_row(self, **columns: Any) -> None:
        """Set columns of the session's row."""
        row = self.row._replace(**columns)
        if row != self.row:
            self.row, self.stale_row = row, True

    def set_memory(self, memory: bytes) -> None:
        """Set what the harness keeps."""
        if memory != self.memory:
            self.memory, self.stale_memory = memory, True

    def put_turn(self, row: TurnRow) -> None:
        """Insert or replace a turn's row. Raises KartaError when it would be the second active one."""
        if row.is_active and self.active not in ("", row.turn_id):
            raise KartaError(
                v1.ERROR_REASON_INTERNAL,
                f"A unit broke a constraint of the store: turn {self.active} of session {row.session_id} is active, "
                f"and {row.turn_id} cannot be too. Nothing was changed.",
            )
        if row.is_active:
            self.active = row.turn_id
        elif self.active == row.turn_id:
            self.active = ""
        if self.turns.get(row.turn_id) != row:
            self.turns[row.turn_id] = row
            self.stale_turns.add(row.turn_id)
        self.last_turn_id = max(self.last_turn_id, row.turn_id)

    def put_input(self, row: InputRow) -> None:
        """Insert or replace an input request's row."""
        if self.inputs.get(row.input_request_id) != row:
            self.inputs[row.input_request_id] = row
            self.stale_inputs.add(row.input_request_id)
        if row.turn_id > self.last_asked_turn_id:
            self.last_asked_turn_id = self.asked_turn_id = row.turn_id

    def knows_inputs_of(self, turn_id: str) -> bool:
        """Whether all input requests of the turn that wait are in `inputs`."""
        return turn_id == self.asked_turn_id or turn_id > self.last_asked_turn_id

    def written(self) -> None:
        """Note that the database has all rows."""
        self.stale_row = self.stale_metadata = self.stale_memory = False
        self.stale_turns, self.stale_inputs = set(), set()

    def clear(self) -> None:
        """Forget all of a session that was deleted in the database."""
        fresh = SessionState(SessionRow(*self.key), deleted=True, size=self.size)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))

    def commit(self) -> Commit:
        """Return what listeners hear of this transaction."""
        frames = None
        if self.frames:
            latest = self.row.latest_sequence
            finishes = self.finishes and bool(self.turn_id)
            frames = Frames(b"".join(self.frames), latest - len(self.frames) + 1, latest, self.turn_id, finishes)
        return Commit(self.key, frames, list(self.resolved.values()), self.deleted)

    def settle(self) -> None:
        """Begin the next transaction, keeping what it will probably need."""
        self.frames, self.resolved, self.deleted, self.metadata = [], {}, False, {}
        self.turns = {id_: row for id_, row in self.turns.items() if id_ == self.active}
        self.inputs = {id_: row for id_, row in self.inputs.items() if row.state == v1.INPUT_STATE_PENDING}
        if self.memory is not None and len(self.memory) > _KEPT_MEMORY_BYTES:
            self.memory = None

    def measure(self) -> int:
        """Return about how many bytes it keeps between transactions."""
        rows: Iterable[TurnRow | InputRow] = (*self.turns.values(), *self.inputs.values())
        own = len(self.row.body) + len(self.row.search) + len(self.memory or b"")
        return _OWN_BYTES + own + sum(len(row.body) for row in rows)
