"""From stored frames to streamed messages.

Stored data is field 1 of EventFrame, repeated, which is also field 1 of every
response that streams events; so a frame is the stored bytes and a cursor, and
is parsed only where a filter needs it.
"""

import time
from collections.abc import AsyncGenerator

from google.protobuf import duration_pb2

from karta import v1
from karta_server.core import checks
from karta_server.core.session_log import Cursor, SessionLog
from karta_server.framing import varint
from karta_server.storage.contract import Frames, SessionKey

_LATEST_SEQUENCE = b"\x10"
_FIELD_ONE = b"\x0a"


def frame(data: bytes, latest_sequence: int) -> bytes:
    """Return an EventFrame, serialized: events and the cursor behind them."""
    return data + _LATEST_SEQUENCE + varint(latest_sequence)


def conversation_frame(event_frame: bytes) -> bytes:
    """Return a ConverseResponse, serialized, that holds an EventFrame."""
    return _FIELD_ONE + varint(len(event_frame)) + event_frame


def heartbeat_seconds(interval: duration_pb2.Duration | None, default: float) -> float:
    """Return how long a stream may be idle."""
    if interval is None:
        return default
    return checks.seconds("heartbeat_interval", interval, 1, 3600)


async def session_frames(
    log: SessionLog, key: SessionKey, after: int, kinds: frozenset[str], *, follow: bool, idle_seconds: float
) -> AsyncGenerator[bytes, None]:
    """Yield a session's log behind `after`; without `follow`, up to its newest event."""
    async with log.watch(key, after) as cursor:
        beat = Heartbeat(idle_seconds)
        told = after
        while True:
            frames = await cursor.next(beat.remaining() if follow else 0)
            data = b"" if frames is None else _only(frames.data, kinds)
            ends = frames is None and not follow
            if data or beat.due() or (ends and told != cursor.position):
                beat.sent()
                told = cursor.position
                yield frame(data, told)
            if ends:
                return


async def turn_frames(
    cursor: Cursor, turn: v1.Turn, kinds: frozenset[str], idle_seconds: float
) -> AsyncGenerator[bytes, None]:
    """Yield a turn's events behind the cursor, up to its turn_finished, which no filter leaves out."""
    if turn.last_sequence and cursor.position >= turn.last_sequence:
        yield frame(b"", cursor.position)
        return
    beat = Heartbeat(idle_seconds)
    finished = False
    while not finished:
        frames = await cursor.next(beat.remaining())
        data, latest_sequence = b"", cursor.position
        if frames is not None:
            data, latest_sequence, finished = _of_turn(frames, turn.turn_id, kinds)
        if data or beat.due():
            beat.sent()
            yield frame(data, latest_sequence)


class Heartbeat:
    """When a stream that has sent nothing for a while has to say that it lives."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self.sent()

    def sent(self) -> None:
        """Begin to wait."""
        self._deadline = time.monotonic() + self._idle_seconds

    def remaining(self) -> float:
        """Return how many seconds are left, at least 0."""
        return max(0.0, self._deadline - time.monotonic())

    def due(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._deadline


def _of_turn(frames: Frames, turn_id: str, kinds: frozenset[str]) -> tuple[bytes, int, bool]:
    """Return the turn's events among the frames, up to which sequence, and whether the turn ends there."""
    if frames.turn_id == turn_id and not kinds:
        return frames.data, frames.last, frames.finishes
    if frames.turn_id not in ("", turn_id):
        return b"", frames.last, False
    kept = v1.EventFrame()
    for event in v1.EventFrame.FromString(frames.data).events:
        if event.turn_id != turn_id:
            continue
        kind = event.WhichOneof("kind")
        if not kinds or kind in kinds or kind == "turn_finished":
            kept.events.append(event)
        if kind == "turn_finished":
            return kept.SerializeToString(), event.sequence, True
    return kept.SerializeToString(), frames.last, False


def _only(data: bytes, kinds: frozenset[str]) -> bytes:
    if not kinds:
        return data
    events = v1.EventFrame.FromString(data).events
    return v1.EventFrame(events=[e for e in events if e.WhichOneof("kind") in kinds]).SerializeToString()
