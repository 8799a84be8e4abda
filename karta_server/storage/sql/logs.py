"""The logs of the sessions that the writer writes.

Keeps the part of a session's row that follows its log in memory, collects the
frames of all units and appends of a transaction, and writes them at its end: a
statement for all chunks, a statement for all rows.

The thread of the writer gives up the GIL with every statement and every row
that it reads, and a busy event loop gives it back late. So what is known of
recent sessions is kept from one transaction to the next: nobody else writes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

from sqlalchemy import Connection

from karta import v1
from karta_server.errors import KartaError
from karta_server.framing import frame
from karta_server.storage.contract import Commit, Fence, Frames, SessionKey
from karta_server.storage.sql import dialect

CHUNK_BYTES: Final = 256 * 1024
"""A chunk ends before it exceeds this, unless one event alone does."""

_ROWS_A_STATEMENT: Final = 256
_KNOWN_SESSIONS: Final = 4_096

Clock = Callable[[], int]
"""Nanoseconds since 1970."""


@dataclass(slots=True)
class Log:
    """A session's row, its body aside, and what this transaction adds to its log."""

    key: SessionKey
    exists: bool = False
    latest_sequence: int = 0
    oldest_sequence: int = 1
    update_time: int = 0
    active_turn_id: str = ""
    fence: int = 0
    metadata_digest: bytes = b""
    frames: list[bytes] = field(default_factory=list)
    turn_id: str = ""
    """The turn that all frames belong to; empty when there is not just one."""
    finishes: bool = False
    """Whether the last frame is that turn's end."""
    inputs: dict[str, v1.InputRequest] = field(default_factory=dict)
    deleted: bool = False

    def copy(self) -> "Log":
        """Return a copy that can change without this one."""
        return replace(self, frames=list(self.frames), inputs=dict(self.inputs))

    def clear(self) -> None:
        """Forget all of a session that was deleted."""
        self.exists, self.deleted = False, True
        self.latest_sequence = self.update_time = self.fence = 0
        self.oldest_sequence = 1
        self.active_turn_id, self.metadata_digest = "", b""
        self.frames.clear()
        self.inputs.clear()

    def commit(self) -> Commit:
        """Return what listeners hear of this transaction."""
        frames = None
        if self.frames:
            first = self.latest_sequence - len(self.frames) + 1
            finishes = self.finishes and bool(self.turn_id)
            frames = Frames(b"".join(self.frames), first, self.latest_sequence, self.turn_id, finishes)
        return Commit(self.key, frames, list(self.inputs.values()), self.deleted)

    def settle(self) -> None:
        """Begin the next transaction."""
        self.frames, self.inputs, self.deleted = [], {}, False


class Logs:
    """All logs. `begin` … `keep` or `undo` bracket a unit; `flush` and `committed` or `lost` a transaction."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._known: dict[SessionKey, Log] = {}
        self._changed: dict[SessionKey, Log] = {}
        self._unit: dict[SessionKey, Log] | None = None

    def load(self, keys: Iterable[SessionKey]) -> None:
        """Read the rows of these sessions; those that do not exist are known not to."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        for start in range(0, len(missing), _ROWS_A_STATEMENT):
            self._load(missing[start : start + _ROWS_A_STATEMENT])

    def begin(self) -> None:
        """Begin a unit."""
        self._unit = {}

    def keep(self) -> None:
        """End the unit with its changes."""
        unit, self._unit = self._unit or {}, None
        self._known.update(unit)
        self._changed.update(unit)

    def undo(self) -> None:
        """End the unit without its changes."""
        self._unit = None

    def find(self, key: SessionKey) -> Log:
        """Return the log as it is now. Not to be changed."""
        if self._unit and (log := self._unit.get(key)):
            return log
        if key not in self._known:
            self._load([key])
        return self._known[key]

    def change(self, key: SessionKey) -> Log:
        """Return the log to be changed, whether the session exists or not."""
        log = self.find(key)
        if self._unit is None:
            self._changed[key] = log
        elif key not in self._unit:
            log = self._unit[key] = log.copy()
        return log

    def change_existing(self, key: SessionKey) -> Log:
        """Return the log to be changed. Raises KartaError SESSION_NOT_FOUND."""
        self._find_existing(key)
        return self.change(key)

    def append(self, key: SessionKey, events: Iterable[v1.Event], fence: Fence | None) -> int:
        """See Tx.append. Changes nothing when it raises."""
        log = self._find_existing(key)
        if fence is not None and fence != (log.active_turn_id, log.fence):
            raise KartaError(
                v1.ERROR_REASON_FENCED,
                f"Turn {fence.turn_id} is not run by this writer any more: the session's active turn is "
                f"{log.active_turn_id or 'none'}, its fence {log.fence}, the writer's {fence.number}. "
                "Stop the harness and drop its events.",
            )
        now = self._clock()
        numbered = list(events)
        frames = _number(numbered, key.session_id, log.latest_sequence, now)
        if frames:
            log = self.change(key)
            log.turn_id = _one_turn(numbered, log)
            log.finishes = numbered[-1].HasField("turn_finished")
            log.frames += frames
            log.latest_sequence += len(frames)
            log.update_time = now // 1_000
        return log.latest_sequence

    def trim(self, key: SessionKey, keep_events: int, keep_since: int) -> int:
        """See Tx.trim. What this transaction adds is kept."""
        log = self._find_existing(key)
        oldest = self._first_kept(log, keep_events, keep_since)
        if oldest > log.oldest_sequence:
            log = self.change(key)
            log.oldest_sequence = oldest
            self._connection.exec_driver_sql(
                "DELETE FROM event_chunks WHERE tenant_id = ? AND session_id = ? AND last_sequence < ?", (*key, oldest)
            )
            self._connection.exec_driver_sql(
                "UPDATE sessions SET oldest_sequence = ? WHERE tenant_id = ? AND session_id = ?", (oldest, *key)
            )
        return log.oldest_sequence

    def flush(self) -> list[Commit]:
        """Write chunks and rows; return what the transaction changed in each session."""
        chunks = [chunk for log in self._changed.values() for chunk in _chunks(log)]
        for start in range(0, len(chunks), _ROWS_A_STATEMENT):
            self._insert_chunks(chunks[start : start + _ROWS_A_STATEMENT])
        self.flush_rows()
        return [log.commit() for log in self._changed.values()]

    def flush_rows(self) -> None:
        """Write how far the logs are, so that queries see it. May be called again."""
        logs = self._changed | (self._unit or {})
        ahead = [(*log.key, log.latest_sequence, log.update_time) for log in logs.values() if log.frames]
        for start in range(0, len(ahead), _ROWS_A_STATEMENT):
            values, parameters = dialect.values(ahead[start : start + _ROWS_A_STATEMENT])
            self._connection.exec_driver_sql(
                # Nothing but placeholders is put in, here and below.
                "WITH log (tenant_id, session_id, latest_sequence, update_time) AS "  # noqa: S608
                f"({values}) UPDATE sessions "
                "SET latest_sequence = log.latest_sequence, update_time = log.update_time FROM log "
                "WHERE sessions.tenant_id = log.tenant_id AND sessions.session_id = log.session_id",
                parameters,
            )

    def committed(self) -> None:
        """Begin the next transaction, knowing what this one left."""
        for key, log in self._changed.items():
            log.settle()
            self._known[key] = self._known.pop(key)
        self._changed.clear()
        while len(self._known) > _KNOWN_SESSIONS:
            del self._known[next(iter(self._known))]

    def lost(self) -> None:
        """Begin the next transaction, knowing nothing: this one was rolled back."""
        self._known.clear()
        self._changed.clear()

    def _first_kept(self, log: Log, keep_events: int, keep_since: int) -> int:
        """Return the first sequence of the oldest chunk that is within both bounds."""
        chunks = "SELECT first_sequence FROM event_chunks WHERE tenant_id = ? AND session_id = ?"

        def find(where: str, *parameters: int) -> int | None:
            found = self._connection.exec_driver_sql(f"{chunks} {where} LIMIT 1", (*log.key, *parameters))
            return cast("int | None", found.scalar())

        newest = find("ORDER BY last_sequence DESC")
        first = log.oldest_sequence
        if newest is not None and keep_events:
            behind = log.latest_sequence - keep_events
            first = max(first, find("AND last_sequence > ? ORDER BY last_sequence", behind) or newest)
        if newest is not None and keep_since:
            first = max(first, find("AND create_time >= ? ORDER BY last_sequence", keep_since) or newest)
        return first

    def _find_existing(self, key: SessionKey) -> Log:
        log = self.find(key)
        if not log.exists:
            raise KartaError(
                v1.ERROR_REASON_SESSION_NOT_FOUND,
                f"There is no session {key.session_id}. It was deleted, or belongs to somebody else.",
                session_id=key.session_id,
            )
        return log

    def _load(self, keys: Sequence[SessionKey]) -> None:
        values, parameters = dialect.values(keys)
        rows = self._connection.exec_driver_sql(
            # A join, and in this order: with IN, SQLite would go through all sessions.
            f"WITH wanted (tenant_id, session_id) AS ({values}) "  # noqa: S608
            "SELECT tenant_id, session_id, latest_sequence, oldest_sequence, update_time, active_turn_id, fence, "
            "metadata_digest FROM wanted CROSS JOIN sessions USING (tenant_id, session_id)",
            parameters,
        )
        self._known.update((key, Log(key)) for key in keys)
        for tenant_id, session_id, *columns in rows:
            key = SessionKey(tenant_id, session_id)
            self._known[key] = Log(key, True, *columns)

    def _insert_chunks(self, rows: "Sequence[Chunk]") -> None:
        values, parameters = dialect.values(rows)
        self._connection.exec_driver_sql(
            "INSERT INTO event_chunks (tenant_id, session_id, first_sequence, last_sequence, create_time, frames) "
            f"{values}",
            parameters,
        )


def _number(events: Iterable[v1.Event], session_id: str, latest: int, now: int) -> list[bytes]:
    seconds, nanos = divmod(now, 1_000_000_000)
    frames = []
    for sequence, event in enumerate(events, latest + 1):
        event.sequence = sequence
        event.session_id = session_id
        event.create_time.seconds = seconds
        event.create_time.nanos = nanos
        frames.append(frame(event.SerializeToString()))
    return frames


def _one_turn(events: Sequence[v1.Event], log: Log) -> str:
    """Return the turn of the events and of what the log has got already, if that is one."""
    turn_id = events[0].turn_id
    if log.frames and log.turn_id != turn_id:
        return ""
    return turn_id if all(event.turn_id == turn_id for event in events) else ""


Chunk = tuple[str, str, int, int, int, bytes]


def _chunks(log: Log) -> Iterable[Chunk]:
    frames = log.frames
    sequence = log.latest_sequence - len(frames)
    start = size = 0
    for index, data in enumerate(frames):
        if size and size + len(data) > CHUNK_BYTES:
            yield (*log.key, sequence + start + 1, sequence + index, log.update_time, b"".join(frames[start:index]))
            start, size = index, 0
        size += len(data)
    if size:
        yield (*log.key, sequence + start + 1, log.latest_sequence, log.update_time, b"".join(frames[start:]))
