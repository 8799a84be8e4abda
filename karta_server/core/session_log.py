"""Watching session logs: cursors over recent frames, with the store behind them.

A watcher is a session and a sequence. It is woken when there is something
behind its sequence and takes all of it at once, so that a slow one costs
nothing and delays nobody. Frames are passed on as the bytes that were stored.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice

from karta import v1
from karta_server import framing
from karta_server.core.session_record import session_not_found
from karta_server.errors import KartaError
from karta_server.storage.contract import Commit, Frames, SessionKey, Store

FRAME_BYTES = 512 * 1024
# What is kept of a session while it has watchers, twice at the most, and of all sessions together.
RECENT_FRAMES = 256
RECENT_BYTES = 512 * 1024
ALL_RECENT_BYTES = 64 * 1024 * 1024
_FRAMES_OVERHEAD_BYTES = 300


class _Topic:
    """What the watchers of one session share."""

    def __init__(self) -> None:
        self.recent: list[Frames] = []
        self.bytes = 0
        self.latest = 0
        self.deleted = False
        self.watchers = 0
        self.woken: asyncio.Event = asyncio.Event()

    def wake(self) -> None:
        self.woken.set()
        self.woken = asyncio.Event()

    def behind(self, sequence: int) -> Frames | None:
        """Return recent frames behind a sequence, when they begin right there."""
        if not self.recent or self.recent[0].first > sequence + 1 or self.recent[-1].last <= sequence:
            return None
        index = bisect_right(self.recent, sequence, key=lambda frames: frames.last)
        pieces: list[bytes] = []
        size = 0
        last, turn_id, finishes = sequence, "", False
        for frames in islice(self.recent, index, None):
            # One turn's frames stay apart from others, so that its watchers need not look into them.
            if pieces and (size + len(frames.data) > FRAME_BYTES or finishes or frames.turn_id != turn_id):
                break
            data = frames.data
            if frames.first <= sequence:
                data = data[framing.skip(data, sequence + 1 - frames.first) :]
            pieces.append(data)
            size += len(data)
            last, turn_id, finishes = frames.last, frames.turn_id, frames.finishes
        return Frames(pieces[0] if len(pieces) == 1 else b"".join(pieces), sequence + 1, last, turn_id, finishes)

    def keep(self, frames: Frames) -> int:
        """Keep frames as the most recent ones; return by how many bytes more are kept now."""
        self.latest = frames.last
        self.recent.append(frames)
        grown = _size(frames)
        # Whole batches are dropped, so that a long list is not moved for each frame.
        if len(self.recent) > 2 * RECENT_FRAMES or self.bytes + grown > 2 * RECENT_BYTES:
            grown -= self._drop()
        self.bytes += grown
        return grown

    def _drop(self) -> int:
        count = max(len(self.recent) - RECENT_FRAMES, len(self.recent) // 2)
        dropped = sum(_size(frames) for frames in self.recent[:count])
        del self.recent[:count]
        return dropped

    def clear(self) -> int:
        """Keep nothing; return how many bytes were kept."""
        freed, self.bytes = self.bytes, 0
        self.recent.clear()
        return freed


class SessionLog:
    """The watching side of every session's log on this server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._topics: dict[SessionKey, _Topic] = {}
        self._bytes = 0
        self._unsubscribe = store.subscribe(self._committed)

    def close(self) -> None:
        """Stop listening to the store."""
        self._unsubscribe()

    def watch(self, key: SessionKey, after: int) -> "Cursor":
        """Return a cursor behind `after`; enter it before use. It misses nothing from then on."""
        return Cursor(self, self._store, key, after)

    def join(self, key: SessionKey) -> _Topic:
        """Begin to collect a session's recent frames."""
        topic = self._topics.setdefault(key, _Topic())
        topic.watchers += 1
        return topic

    def leave(self, key: SessionKey, topic: _Topic) -> None:
        """Forget a session's recent frames with its last watcher."""
        topic.watchers -= 1
        if topic.watchers == 0:
            self._bytes -= topic.clear()
            self._topics.pop(key, None)

    def _committed(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            topic = self._topics.get(commit.session)
            if topic is None:
                continue
            if commit.frames is not None:
                self._bytes += topic.keep(commit.frames)
                if self._bytes > ALL_RECENT_BYTES:
                    self._forget_all()
            topic.deleted = topic.deleted or commit.deleted
            topic.wake()

    def _forget_all(self) -> None:
        """Keep nothing of any session: watchers that are behind read from the store."""
        for topic in self._topics.values():
            topic.clear()
        self._bytes = 0


def _size(frames: Frames) -> int:
    return len(frames.data) + _FRAMES_OVERHEAD_BYTES


class Cursor:
    """A place in a session's log that moves forward."""

    def __init__(self, log: SessionLog, store: Store, key: SessionKey, after: int) -> None:
        self._log = log
        self._store = store
        self._key = key
        self.position = after

    async def __aenter__(self) -> "Cursor":
        self._topic = self._log.join(self._key)
        try:
            session = await self._store.sessions.get(self._key)
            if session is None:
                raise session_not_found(self._key)
            self._topic.latest = max(self._topic.latest, session.latest_sequence)
            self._check(session.oldest_sequence)
        except BaseException:
            self._log.leave(self._key, self._topic)
            raise
        return self

    def _check(self, oldest_sequence: int) -> None:
        if self.position > self._topic.latest:
            raise _out_of_range(self.position, self._topic.latest)
        if 0 < self.position < oldest_sequence - 1:
            raise _trimmed(self.position, oldest_sequence)

    async def __aexit__(self, *_: object) -> None:
        self._log.leave(self._key, self._topic)

    async def next(self, timeout_seconds: float) -> Frames | None:
        """Return what is behind the position and move there; None when the time is over.

        With a time-out of 0 it returns what is there. Raises KartaError
        SESSION_NOT_FOUND when the session is deleted, EVENTS_TRIMMED when what
        comes next was trimmed meanwhile.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while True:
            if self._topic.deleted:
                raise session_not_found(self._key)
            woken = self._topic.woken
            frames = self._topic.behind(self.position)
            if frames is None and self._topic.latest > self.position:
                frames = await self._read()
            if frames is not None:
                self.position = frames.last
                return frames
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                return None
            try:
                async with asyncio.timeout(remaining):
                    await woken.wait()
            except TimeoutError:
                return None

    async def _read(self) -> Frames | None:
        frames = await self._store.events.read(self._key, self.position, FRAME_BYTES)
        if frames is not None and frames.first > self.position + 1 and self.position:
            raise _trimmed(self.position, frames.first)
        return frames


def _trimmed(after: int, oldest: int) -> KartaError:
    return KartaError(
        v1.ERROR_REASON_EVENTS_TRIMMED,
        f"The log begins at {oldest}: what follows {after} is not kept any more. Begin with {oldest - 1}, or 0.",
        after_sequence=after,
        oldest_sequence=oldest,
    )


def _out_of_range(after: int, latest: int) -> KartaError:
    return KartaError(
        v1.ERROR_REASON_SEQUENCE_OUT_OF_RANGE,
        f"after_sequence is {after}, but the log ends at {latest}: the cursor is of another session.",
        after_sequence=after,
        latest_sequence=latest,
    )
