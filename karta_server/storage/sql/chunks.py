"""How a log is cut into rows."""

from collections.abc import Iterator
from typing import Final

from karta_server.storage.sql.session_state import SessionState

CHUNK_BYTES: Final = 256 * 1024
"""A chunk ends before it exceeds this, unless one event alone does."""

Chunk = tuple[str, str, int, int, int, bytes]
"""A row of `event_chunks`."""


def chunks(state: SessionState) -> Iterator[Chunk]:
    """Yield the rows that hold what the transaction adds to a session's log."""
    frames = state.frames
    latest = state.row.latest_sequence - len(frames)
    start = size = 0
    for index, data in enumerate(frames):
        if size and size + len(data) > CHUNK_BYTES:
            yield _chunk(state, latest + start + 1, frames[start:index])
            start, size = index, 0
        size += len(data)
    if size:
        yield _chunk(state, latest + start + 1, frames[start:])


def _chunk(state: SessionState, first: int, frames: list[bytes]) -> Chunk:
    return (*state.key, first + len(frames) - 1, first, state.row.update_time, b"".join(frames))
