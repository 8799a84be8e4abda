"""Appending to logs, and trimming them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

from sqlalchemy import Connection

from karta import v1
from karta_server.errors import KartaError
from karta_server.framing import frame
from karta_server.storage.contract import Fence, SessionKey
from karta_server.storage.sql.cache import Cache
from karta_server.storage.sql.session_state import SessionState

_CHUNKS_A_TRIM: Final = 256
_FIRST: Final = "SELECT first_sequence FROM event_chunks WHERE tenant_id = ? AND session_id = ?"
_FARTHEST: Final = f"{_FIRST} ORDER BY last_sequence LIMIT 1 OFFSET ?"

Clock = Callable[[], int]
"""Nanoseconds since 1970."""


class Logs:
    """The logs of all sessions, inside of a transaction."""

    def __init__(self, connection: Connection, cache: Cache, clock: Clock) -> None:
        self._connection = connection
        self._cache = cache
        self._clock = clock

    def append(self, key: SessionKey, events: Iterable[v1.Event], fence: Fence | None) -> int:
        """See Tx.append. Changes nothing when it raises."""
        state = self._cache.find_existing(key)
        if fence is not None and fence != (state.row.active_turn_id, state.row.fence):
            raise _fenced(fence, state)
        now = self._clock()
        numbered = list(events)
        frames = _number(numbered, key.session_id, state.row.latest_sequence, now)
        if frames:
            state = self._cache.change(key)
            state.turn_id = _one_turn(numbered, state)
            state.finishes = numbered[-1].HasField("turn_finished")
            state.frames += frames
            state.change_row(latest_sequence=state.row.latest_sequence + len(frames), update_time=now // 1_000)
        return state.row.latest_sequence

    def trim(self, key: SessionKey, keep_events: int, keep_since: int) -> int:
        """See Tx.trim. What this transaction adds is kept."""
        state = self._cache.find_existing(key)
        oldest = self._first_kept(state, keep_events, keep_since)
        if oldest > state.row.oldest_sequence:
            self._cache.save()
            self._connection.exec_driver_sql(
                "DELETE FROM event_chunks WHERE tenant_id = ? AND session_id = ? AND last_sequence < ?", (*key, oldest)
            )
            self._cache.change(key).change_row(oldest_sequence=oldest)
        return oldest

    def _first_kept(self, state: SessionState, keep_events: int, keep_since: int) -> int:
        """Return the first sequence of the oldest chunk that is within both bounds, or of one before it."""

        def find(where: str, *parameters: int) -> int | None:
            statement = (
                f"SELECT first_sequence FROM event_chunks WHERE tenant_id = ? AND session_id = ? {where} LIMIT 1"  # noqa: S608
            )
            found = self._connection.exec_driver_sql(statement, (*state.key, *parameters))
            return cast("int | None", found.scalar())

        newest = (
            state.row.latest_sequence - len(state.frames) + 1 if state.frames else find("ORDER BY last_sequence DESC")
        )
        first = state.row.oldest_sequence
        if newest is None:
            return first
        if keep_events:
            behind = state.row.latest_sequence - keep_events
            first = max(first, find("AND last_sequence > ? ORDER BY last_sequence", behind) or newest)
        if keep_since:
            first = max(first, find("AND create_time >= ? ORDER BY last_sequence", keep_since) or newest)
        farthest = self._connection.exec_driver_sql(_FARTHEST, (*state.key, _CHUNKS_A_TRIM)).scalar()
        return first if farthest is None else min(first, cast("int", farthest))


def _number(events: Iterable[v1.Event], session_id: str, latest: int, now: int) -> list[bytes]:
    seconds, nanos = divmod(now, 1_000_000_000)
    frames = []
    for sequence, event in enumerate(events, latest + 1):
        event.sequence = sequence
        event.session_id = session_id
        create_time = event.create_time
        create_time.seconds = seconds
        create_time.nanos = nanos
        frames.append(frame(event.SerializeToString()))
    return frames


def _one_turn(events: Sequence[v1.Event], state: SessionState) -> str:
    """Return the turn of the events and of what is to be appended already, if that is one."""
    turn_id = events[0].turn_id
    if state.frames and state.turn_id != turn_id:
        return ""
    return turn_id if all(event.turn_id == turn_id for event in events) else ""


def _fenced(fence: Fence, state: SessionState) -> KartaError:
    return KartaError(
        v1.ERROR_REASON_FENCED,
        f"Turn {fence.turn_id} is not run by this writer any more: the session's active turn is "
        f"{state.row.active_turn_id or 'none'}, its fence {state.row.fence}, the writer's {fence.number}. "
        "Stop the harness and drop its events.",
    )
