"""Watching session logs: cursors over recent frames, with the store behind them.

A watcher is a session and a sequence. It is woken when there is something
behind its sequence and takes all of it at once, so that a slow one costs
nothing and delays nobody. Frames are passed on as the bytes that were stored.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from karta import v1
from karta_server import framing
from karta_server.core.session_record import session_not_found
from karta_server.errors import KartaError
from karta_server.storage.contract import Commit, Frames, SessionKey, Store

FRAME_BYTES = 512 * 1024
RING_BYTES = 32 * 1024 * 1024


class _Topic:
    """What the watchers of one session share."""

    def __init__(self) -> None:
        self.recent: deque[Frames] = deque()
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
        pieces: list[bytes] = []
        size = 0
        last, turn_id, finishes = sequence, "", False
        for frames in self.recent:
            if frames.last <= sequence:
                continue
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


class SessionLog:
    """The watching side of every session's log on this server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._topics: dict[SessionKey, _Topic] = {}
        self._ring: deque[tuple[_Topic, Frames]] = deque()
        self._ring_bytes = 0
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
            topic.recent.clear()
            self._topics.pop(key, None)

    def _committed(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            topic = self._topics.get(commit.session)
            if topic is None:
                continue
            if commit.frames is not None:
                self._keep(topic, commit.frames)
            topic.deleted = topic.deleted or commit.deleted
            topic.wake()

    def _keep(self, topic: _Topic, frames: Frames) -> None:
        topic.latest = frames.last
        topic.recent.append(frames)
        self._ring.append((topic, frames))
        self._ring_bytes += len(frames.data)
        while self._ring_bytes > RING_BYTES or (self._ring and self._ring[0][0].watchers == 0):
            oldest, dropped = self._ring.popleft()
            self._ring_bytes -= len(dropped.data)
            if oldest.recent and oldest.recent[0] is dropped:
                oldest.recent.popleft()


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
            if self.position > self._topic.latest:
                raise _out_of_range(self.position, self._topic.latest)
        except BaseException:
            self._log.leave(self._key, self._topic)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._log.leave(self._key, self._topic)

    @property
    def latest(self) -> int:
        """The newest sequence that is known."""
        return self._topic.latest

    async def next(self, timeout_seconds: float) -> Frames | None:
        """Return what is behind the position and move there; None when the time is over.

        With a time-out of 0 it returns what is there. Raises KartaError
        SESSION_NOT_FOUND when the session is deleted.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while True:
            if self._topic.deleted:
                raise session_not_found(self._key)
            woken = self._topic.woken
            frames = self._topic.behind(self.position)
            if frames is None and self._topic.latest > self.position:
                frames = await self._store.events.read(self._key, self.position, FRAME_BYTES)
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


def _out_of_range(after: int, latest: int) -> KartaError:
    return KartaError(
        v1.ERROR_REASON_SEQUENCE_OUT_OF_RANGE,
        f"after_sequence is {after}, but the log ends at {latest}: the cursor is of another session.",
        after_sequence=after,
        latest_sequence=latest,
    )
