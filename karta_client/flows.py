"""What takes more than one call, as generators: both APIs perform the steps that these yield.

A step is a Call (sent back: its answer; thrown in: its KartaError), an Ask
(sent back: the answer that the callback gave) or a Pause.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from karta import v1
from karta_client import calls
from karta_client.calls import Call
from karta_client.cursor import Backoff, Cursor, TurnCursor
from karta_client.errors import (
    ConflictError,
    DeadlineError,
    FailedPreconditionError,
    InputRequiredError,
    from_turn,
)
from karta_client.event import Answerable
from karta_client.input import InputCallback
from karta_client.participant import ParticipantLike, participant_message

R = TypeVar("R")

_WAIT_SLICE_SECONDS = 600.0  # One WaitTurn may take up to an hour; shorter ones notice more.
_SETTLE_SECONDS = 0.05


@dataclass(frozen=True)
class Ask:
    """Ask the callback."""

    callback: InputCallback
    request: v1.InputRequest


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


Step = Call[Any] | Ask | Pause
Flow = Generator[Step, Any, R]


@dataclass(frozen=True)
class Reply:
    """How a turn's input requests are met: by the callback, else they are handed out as `answerable` makes them."""

    callback: InputCallback | None
    answerable: Answerable
    participant_id: str = ""


class Clock:
    """How long an operation may still take."""

    def __init__(self, timeout: float | None) -> None:
        self.end = None if timeout is None else time.monotonic() + timeout

    def slice(self) -> float:
        """Return how long to wait in one call."""
        return _WAIT_SLICE_SECONDS if self.end is None else min(_WAIT_SLICE_SECONDS, max(0.0, self._left()))

    @property
    def expired(self) -> bool:
        return self.end is not None and self._left() <= 0

    def _left(self) -> float:
        assert self.end is not None
        return self.end - time.monotonic()


def send(start: v1.StartTurnRequest, reply: Reply, timeout: float | None) -> Flow[v1.Turn]:
    """Start a turn and return it when it is COMPLETED; see `wait` for the rest."""
    clock = Clock(timeout)
    started: v1.StartTurnResponse = yield calls.start_turn(start)
    return (yield from _settle(started.turn, reply, clock))


def wait(session_id: str, turn_id: str, reply: Reply, timeout: float | None) -> Flow[v1.Turn]:
    """Return the turn when it is COMPLETED.

    Raises TurnError when it ended otherwise, DeadlineError, and
    InputRequiredError when it waits for input and there is no callback.
    """
    turn = v1.Turn(session_id=session_id, turn_id=turn_id, state=v1.TURN_STATE_RUNNING)
    return (yield from _settle(turn, reply, Clock(timeout)))


def _settle(turn: v1.Turn, reply: Reply, clock: Clock) -> Flow[v1.Turn]:
    asked: set[str] = set()
    while True:
        turn = yield from _wait_once(turn, clock)
        if turn.state == v1.TURN_STATE_COMPLETED:
            return turn
        if turn.state != v1.TURN_STATE_INPUT_REQUIRED:
            raise from_turn(turn)
        pending = yield from _pending(turn)
        if reply.callback is None and pending:
            raise InputRequiredError(turn, [reply.answerable(item) for item in pending])
        new = [item for item in pending if item.input_request_id not in asked]
        for request in new:
            asked.add(request.input_request_id)
            yield from answer(request, reply)
        if not new:  # Answered, and the turn has not gone on yet.
            yield Pause(_SETTLE_SECONDS)


def _wait_once(turn: v1.Turn, clock: Clock) -> Flow[v1.Turn]:
    while True:
        try:
            waited: v1.WaitTurnResponse = yield calls.wait_turn(turn.session_id, turn.turn_id, clock.slice())
        except DeadlineError as error:
            if clock.expired:
                text = f"The turn {turn.turn_id} did not end in time; it goes on."
                names = {"session_id": turn.session_id, "turn_id": turn.turn_id}
                raise DeadlineError(text, reason="WAIT_TIMEOUT", code=error.code, metadata=names) from None
        else:
            return waited.turn


def _pending(turn: v1.Turn) -> Flow[list[v1.InputRequest]]:
    listed: v1.ListInputRequestsResponse = yield calls.list_inputs(turn.session_id, turn.turn_id)
    return list(reversed(listed.input_requests))


def answer(request: v1.InputRequest, reply: Reply) -> Flow[None]:
    """Have the callback answer. Somebody else may have been faster: that is no error."""
    if reply.callback is None or request.state not in (v1.INPUT_STATE_PENDING, v1.INPUT_STATE_UNSPECIFIED):
        return
    response: v1.InputResponse = yield Ask(reply.callback, request)
    try:
        yield calls.respond(request.input_request_id, response, reply.participant_id)
    except FailedPreconditionError as error:
        if error.reason != "INPUT_ALREADY_RESOLVED":
            raise


def join(session: v1.Session, participant: ParticipantLike | None) -> Flow[v1.Session]:
    """Add the participant when the session does not have it; one that is there keeps its name and role."""
    if participant is None or isinstance(participant, str):
        return session
    message = participant_message(participant)
    if any(item.participant_id == message.participant_id for item in session.participants):
        return session
    try:
        added: v1.AddParticipantResponse = yield calls.add_participant(session.session_id, message)
    except ConflictError as error:
        if error.reason != "PARTICIPANT_EXISTS":
            raise
        found: v1.GetSessionResponse = yield calls.get_session(session.session_id)
        return found.session
    return added.session


def begin(
    session: v1.Session | Call[v1.CreateSessionResponse],
    participant: ParticipantLike | None,
    start: v1.StartTurnRequest,
    backoff: Backoff,
) -> Flow[Cursor]:
    """Return the cursor of a turn that starts when it is followed, in the session or in one to be made."""
    if isinstance(session, Call):
        created: v1.CreateSessionResponse = yield session
        session = created.session
    joined = yield from join(session, participant)
    start.session_id = joined.session_id
    return TurnCursor(backoff, start=start)


def at(cursor: Cursor) -> Flow[Cursor]:
    """Return the cursor: nothing has to be prepared."""
    yield from ()
    return cursor
