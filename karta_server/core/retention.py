"""How much of a log is kept: old events are removed in the background."""

import asyncio
import logging
import time
from functools import partial
from typing import Final

from karta_server.errors import KartaError
from karta_server.storage.contract import SessionKey, Store, Tx

log = logging.getLogger(__name__)

_ROUND_SECONDS: Final = 60.0
_SESSIONS_AT_ONCE: Final = 256
# Between two sessions, and between two rounds that removed something: others write meanwhile.
_PAUSE_SECONDS: Final = 0.01


class Retention:
    """Trims logs to the newest `max_events` and to events younger than `max_age_seconds`; 0 is no such bound.

    It goes round all sessions and takes a bounded part of each, so that a long
    log delays no other. Of a turn that is not terminal everything is kept, and
    of every log the newest event.
    """

    def __init__(self, store: Store, max_events: int, max_age_seconds: float) -> None:
        self._store = store
        self._max_events = max_events
        self._max_age_seconds = max_age_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, if there is a bound at all."""
        if self._max_events or self._max_age_seconds:
            self._task = asyncio.create_task(self._run(), name="trim logs")

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            trimmed = 0
            try:
                trimmed = await self.trim_all()
            except KartaError as error:
                log.warning("cannot trim logs, trying again later: %s", error.message)
            await asyncio.sleep(_PAUSE_SECONDS if trimmed else _ROUND_SECONDS)

    async def trim_all(self) -> int:
        """Look at every session once; return how many logs were trimmed. Raises STORE_UNAVAILABLE."""
        keep_since = self._keep_since()
        trimmed = 0
        behind: SessionKey | None = None
        while True:
            found, behind = await self._store.sessions.outgrown(behind, self._max_events, keep_since, _SESSIONS_AT_ONCE)
            for key in found:
                trimmed += await self._store.write(partial(self._trim, key=key, keep_since=keep_since), key)
                await asyncio.sleep(_PAUSE_SECONDS)
            if behind is None:
                return trimmed

    def _keep_since(self) -> int:
        return round((time.time() - self._max_age_seconds) * 1_000_000) if self._max_age_seconds else 0

    def _trim(self, tx: Tx, key: SessionKey, keep_since: int) -> bool:
        """Trim one log as far as its turns allow; return whether that removed anything."""
        session = tx.sessions.get(key)
        if session is None:
            return False
        keep_events = self._max_events
        active = tx.turns.get(key, session.active_turn_id) if session.active_turn_id else None
        queued = tx.turns.next_queued(key) if session.queued_turn_count else None
        for turn in (active, queued):
            if turn is not None:
                keep_events = keep_events and max(keep_events, session.latest_sequence - turn.first_sequence + 1)
                keep_since = min(keep_since, turn.create_time.ToMicroseconds())
        return tx.trim(key, keep_events, keep_since) > session.oldest_sequence
