"""How the client goes on when a connection is lost. No I/O: both APIs drive it."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from karta import v1
from karta_client import calls
from karta_client.calls import Call, Frame
from karta_client.errors import InternalError, KartaError, UnavailableError

_FIRST_DELAY_SECONDS = 0.05
_LONGEST_DELAY_SECONDS = 2.0


class Backoff:
    """The pauses between tries: doubling from 0.05 s to 2 s, each shortened by up to a half at random.

    Gives up when `limit()` seconds have passed without progress.
    """

    def __init__(self, limit: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """There was progress: begin anew with the next failure."""
        self._failed_since: float | None = None
        self._delay = _FIRST_DELAY_SECONDS

    def next(self, error: KartaError) -> float:
        """Return how many seconds to pause after this failure; raises it when the limit is reached."""
        now = self._clock()
        if self._failed_since is None:
            self._failed_since = now
        if now + self._delay > self._failed_since + self._limit():
            raise error
        delay = self._delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients, hides nothing
        self._delay = min(self._delay * 2, _LONGEST_DELAY_SECONDS)
        return delay


class Cursor(ABC):
    """A place in a stream of events: what to ask for next, and what of the answer is new.

    Open the stream of `call()`, give every frame to `accept` and use the events
    that it returns; when the stream breaks or ends, `lost` tells how long to
    wait before opening `call()` again. `done` says that nothing more comes.
    """

    def __init__(self, backoff: Backoff, after_sequence: int, kinds: Sequence[str]) -> None:
        self.sequence = after_sequence
        self.kinds = list(kinds)
        self.done = False
        self._backoff = backoff

    @abstractmethod
    def call(self) -> Call[Frame]:
        """Return the call that goes on behind the last event."""

    @abstractmethod
    def _see(self, event: v1.Event) -> None:
        """Take notice of a new event."""

    def accept(self, frame: Frame) -> list[v1.Event]:
        """Return the frame's events that were not returned before."""
        self._backoff.reset()
        events = [event for event in frame.events if event.sequence > self.sequence]
        for event in events:
            self._see(event)
            self.sequence = event.sequence
        self.sequence = max(self.sequence, frame.latest_sequence)
        return events

    def lost(self, error: KartaError | None) -> float:
        """Return how long to pause after the stream failed, or ended early (None).

        Raises the error when trying again is of no use, or was for too long.
        """
        if error is None:
            error = UnavailableError("The server ended the stream.", code="UNAVAILABLE")
        if not isinstance(error, UnavailableError):
            raise error
        return self._backoff.next(error)


class TurnCursor(Cursor):
    """The events of one turn, up to its turn_finished.

    Begins with a request to start the turn, which is safe to repeat, or with a
    turn that is there.
    """

    def __init__(
        self,
        backoff: Backoff,
        *,
        start: v1.StartTurnRequest | None = None,
        session_id: str = "",
        turn_id: str = "",
        after_sequence: int = 0,
        kinds: Sequence[str] = (),
    ) -> None:
        super().__init__(backoff, after_sequence, kinds)
        self.start = start
        self.session_id = start.session_id if start else session_id
        self.turn_id = turn_id

    def call(self) -> Call[Frame]:
        if self.start is not None and not self.turn_id:
            return calls.run_turn(self.start, self.kinds)
        return calls.watch_turn(self.session_id, self.turn_id, self.sequence, self.kinds)

    def _see(self, event: v1.Event) -> None:
        self.turn_id = event.turn_id or self.turn_id
        self.done = self.done or event.WhichOneof("kind") == "turn_finished"


class SessionCursor(Cursor):
    """The log of a session: to its newest event, or on and on."""

    def __init__(
        self,
        backoff: Backoff,
        *,
        session_id: str,
        after_sequence: int = 0,
        kinds: Sequence[str] = (),
        follow: bool = True,
    ) -> None:
        super().__init__(backoff, after_sequence, kinds)
        self.session_id = session_id
        self.follow = follow

    def call(self) -> Call[Frame]:
        return calls.watch_session(self.session_id, self.sequence, self.kinds, self.follow)

    def lost(self, error: KartaError | None) -> float:
        if error is None and not self.follow:
            self.done = True
            return 0.0
        return super().lost(error)

    def _see(self, event: v1.Event) -> None:
        # Without a filter the log has no gap; one would mean that events were lost on the way.
        if not self.kinds and event.sequence != self.sequence + 1:
            text = f"Event {self.sequence + 1} of session {self.session_id} is missing: {event.sequence} came."
            raise InternalError(text, code="DATA_LOSS")
