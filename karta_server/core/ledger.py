"""The ledger of turns: the only place where a turn's state changes.

Plain functions over a transaction. `admit` accepts a turn, `acquire` is the
only way to run one, `finish` ends it; the state and its event are written
together.
"""

from typing import NamedTuple

from karta import v1
from karta_server.core import events
from karta_server.core.session_record import read_session
from karta_server.errors import KartaError
from karta_server.storage.contract import Claim, Fence, SessionKey, Tx

TERMINAL = frozenset(
    {
        v1.TURN_STATE_COMPLETED,
        v1.TURN_STATE_FAILED,
        v1.TURN_STATE_CANCELLED,
        v1.TURN_STATE_INTERRUPTED,
    }
)


class Outcome(NamedTuple):
    """How a turn ended."""

    finished: v1.TurnFinished
    text: str = ""
    """The agent's final message."""
    memory: bytes | None = None
    """What the harness needs to go on; None leaves what is kept."""
    open_tools: tuple[str, ...] = ()
    """Tool calls whose outcome nobody knows."""


class Admitted(NamedTuple):
    """A turn that was accepted, to be queued or acquired in the same unit."""

    session: v1.Session
    turn: v1.Turn
    ahead: int
    """Turns of the session ahead of it, the active one included."""


class Started(NamedTuple):
    """A turn that was acquired."""

    claim: Claim
    turn: v1.Turn


def turn_not_found(key: SessionKey, turn_id: str) -> KartaError:
    """Return the error of a turn that is not there."""
    return KartaError(
        v1.ERROR_REASON_TURN_NOT_FOUND,
        f"There is no turn {turn_id!r} in session {key.session_id!r}; ListTurns shows those that it has.",
        session_id=key.session_id,
        turn_id=turn_id,
    )


def read_turn(tx: Tx, key: SessionKey, turn_id: str) -> v1.Turn:
    """Return a turn inside of a unit, or raise TURN_NOT_FOUND."""
    turn = tx.turns.get(key, turn_id)
    if turn is None:
        raise turn_not_found(key, turn_id)
    return turn


def admit(tx: Tx, session: v1.Session, turn: v1.Turn, max_queued: int) -> Admitted:
    """Accept a turn and record its message; `acquire` or `queue` it then. Raises SESSION_ARCHIVED,
    SESSION_BUSY, QUEUE_FULL."""
    _check_admission(session, turn, max_queued)
    key = SessionKey(session.tenant_id, session.session_id)
    ahead = session.queued_turn_count + bool(session.active_turn_id)
    turn.state = v1.TURN_STATE_QUEUED
    turn.create_time.CopyFrom(events.now())
    received = v1.MessageReceived(message=turn.message, display_name=turn.display_name)
    said = events.said(turn.turn_id, turn.participant_id, message_received=received)
    turn.first_sequence = tx.append(key, [said], None)
    session.queued_turn_count += 1
    return Admitted(session, turn, ahead)


def queue(tx: Tx, admitted: Admitted) -> None:
    """Let an admitted turn wait."""
    session, turn, ahead = admitted
    key = SessionKey(session.tenant_id, session.session_id)
    tx.turns.put(turn)
    tx.sessions.put(session)
    tx.append(key, [events.system(turn.turn_id, turn_queued=v1.TurnQueued(ahead=ahead))], None)


def acquire(tx: Tx, session: v1.Session, turn: v1.Turn, owner: str, default_agent: str) -> Started:
    """Make a queued turn the session's active one, run by `owner`."""
    key = SessionKey(session.tenant_id, session.session_id)
    number = tx.sessions.advance_fence(key)
    turn.state = v1.TURN_STATE_RUNNING
    turn.agent = turn.agent or session.agent or default_agent
    turn.harness = session.harness
    turn.attempt += 1
    turn.start_time.CopyFrom(events.now())
    session.active_turn_id = turn.turn_id
    session.queued_turn_count -= 1
    tx.sessions.put(session)
    tx.turns.put(turn, owner=owner, fence=number)
    started = v1.TurnStarted(agent=turn.agent, harness=turn.harness, attempt=turn.attempt)
    tx.append(key, [events.system(turn.turn_id, turn_started=started)], Fence(turn.turn_id, number))
    return Started(Claim(key, turn.turn_id, owner, number), turn)


def finish(tx: Tx, key: SessionKey, turn_id: str, fence: Fence | None, outcome: Outcome) -> v1.Session:
    """End the active turn: resolve what is open, record its terminal event; return the session.

    `fence` None is for recovery, which takes the right to write from whoever had it.
    """
    session = read_session(tx, key)
    turn = read_turn(tx, key, turn_id)
    if fence is None:
        tx.sessions.advance_fence(key)
    open_events = _cancel_inputs(tx, session, turn) + _unknown_tools(turn, outcome.open_tools)
    end = events.system(turn_id, turn_finished=outcome.finished)
    turn.last_sequence = tx.append(key, [*open_events, end], fence)
    turn.text = outcome.text
    _close(turn, outcome.finished)
    events.add_usage(session.usage, outcome.finished.usage)
    session.active_turn_id = ""
    tx.turns.put(turn, owner="", fence=0)
    tx.sessions.put(session)
    if outcome.memory is not None:
        tx.sessions.set_memory(key, outcome.memory)
    return session


def withdraw(tx: Tx, session: v1.Session, turn: v1.Turn, reason: str) -> v1.Turn:
    """End a queued turn that is not to run."""
    key = SessionKey(session.tenant_id, session.session_id)
    turn_id = turn.turn_id
    finished = v1.TurnFinished(state=v1.TURN_STATE_CANCELLED, state_reason=reason)
    turn.last_sequence = tx.append(key, [events.system(turn_id, turn_finished=finished)], None)
    _close(turn, finished)
    session.queued_turn_count -= 1
    tx.turns.put(turn)
    tx.sessions.put(session)
    return turn


def failed(error: v1.Error) -> v1.TurnFinished:
    """Return the end of a turn that failed."""
    return v1.TurnFinished(state=v1.TURN_STATE_FAILED, state_reason=error.message, error=error)


def _check_admission(session: v1.Session, turn: v1.Turn, max_queued: int) -> None:
    if session.state == v1.SESSION_STATE_ARCHIVED:
        raise KartaError(
            v1.ERROR_REASON_SESSION_ARCHIVED,
            "The session is archived; set its state to ACTIVE with UpdateSession to go on.",
            session_id=session.session_id,
        )
    busy = bool(session.active_turn_id or session.queued_turn_count)
    if busy and turn.busy_policy == v1.BUSY_POLICY_REJECT:
        raise KartaError(
            v1.ERROR_REASON_SESSION_BUSY,
            "The session is busy, and the turn's busy_policy is REJECT; send it again later, or let it queue.",
            session_id=session.session_id,
            active_turn_id=session.active_turn_id,
        )
    if busy and session.queued_turn_count >= max_queued:
        raise KartaError(
            v1.ERROR_REASON_QUEUE_FULL,
            f"{session.queued_turn_count} turns of this session wait already; let some finish, or cancel some.",
            limit=max_queued,
        )


def _close(turn: v1.Turn, finished: v1.TurnFinished) -> None:
    turn.state = finished.state
    turn.state_reason = finished.state_reason
    turn.usage.CopyFrom(finished.usage)
    turn.end_time.CopyFrom(events.now())
    if finished.HasField("error"):
        turn.error.CopyFrom(finished.error)


def _cancel_inputs(tx: Tx, session: v1.Session, turn: v1.Turn) -> list[v1.Event]:
    cancelled = []
    for request in tx.inputs.pending(SessionKey(session.tenant_id, session.session_id), turn.turn_id):
        request.state = v1.INPUT_STATE_CANCELLED
        request.resolve_time.CopyFrom(events.now())
        tx.inputs.put(request)
        session.pending_input_count -= 1
        resolved = v1.InputResolved(input_request_id=request.input_request_id, state=request.state)
        cancelled.append(events.system(turn.turn_id, input_resolved=resolved))
    return cancelled


def _unknown_tools(turn: v1.Turn, tool_use_ids: tuple[str, ...]) -> list[v1.Event]:
    return [
        events.system(
            turn.turn_id,
            tool_result=v1.ToolResult(
                tool_use_id=tool_use_id,
                outcome=v1.TOOL_OUTCOME_UNKNOWN,
                output="The turn ended before the result of this call was known; it may or may not have run.",
            ),
        )
        for tool_use_id in tool_use_ids
    ]
