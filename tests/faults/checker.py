"""What must hold after a kill, whatever the moment."""

# Errors may come or not, and both are judged.
# ruff: noqa: PT017

import asyncio
from collections import Counter

import grpc
import load
import wire
from database import ACTIVE, Contents
from knowledge import Known, Sent

from karta import v1

CALL_SECONDS = 20
TERMINAL = (
    v1.TURN_STATE_COMPLETED,
    v1.TURN_STATE_FAILED,
    v1.TURN_STATE_CANCELLED,
    v1.TURN_STATE_INTERRUPTED,
)


def check_seen(contents: Contents, known: Known) -> None:
    """Every event that a client saw is in the log, with the same bytes."""
    log = contents.logs.get(known.session_id)
    if known.deleting and log is None:
        return
    assert not known.deleted, f"{known.session_id} was deleted and is there"
    assert log is not None, f"{known.session_id} is gone"
    for sequence, data in known.seen.items():
        assert sequence <= len(log), f"{known.session_id}: event {sequence} was seen and is lost, {len(log)} are there"
        assert log[sequence - 1] == data, f"{known.session_id}: event {sequence} is not what was seen"


def check_unchanged(before: Contents, after: Contents) -> None:
    """A restart adds to logs and changes nothing in them; turns that had ended stay as they were."""
    for session_id, log in before.logs.items():
        now = after.logs[session_id]
        assert now[: len(log)] == log, f"{session_id}: the restart changed its past"
    for turn_id, turn in before.turns.items():
        if turn.state in TERMINAL:
            assert after.turns[turn_id] == turn, f"turn {turn_id} had ended and was changed"


def check_turns(log: list[bytes]) -> None:
    """Turns of a session run one at a time and in their order, and each ends once, with its last event."""
    events = [wire.event(data) for data in log]
    running, started = "", []
    ended: dict[str, int] = {}
    received = [event.turn_id for event in events if event.HasField("message_received")]
    assert len(received) == len(set(received)), "a turn was accepted twice"
    for event in events:
        late = event.turn_id in ended
        assert not late, f"turn {event.turn_id} ended with {ended.get(event.turn_id)} and goes on: {event}"
        if event.HasField("turn_started"):
            assert not running, f"turn {event.turn_id} started while {running} ran"
            running = event.turn_id
            started.append(running)
        elif event.HasField("turn_finished"):
            ended[event.turn_id] = event.sequence
            running = "" if running == event.turn_id else running
    assert started == [turn for turn in received if turn in set(started)], "turns did not start in their order"
    resolved = Counter(e.input_resolved.input_request_id for e in events if e.HasField("input_resolved"))
    required = [e.input_required.input_request.input_request_id for e in events if e.HasField("input_required")]
    assert all(count == 1 for count in resolved.values()), f"an input request was resolved twice: {resolved}"
    assert set(resolved) <= set(required), "an input request was resolved that nobody made"


def check_interrupted(before: Contents, after: Contents) -> int:
    """Turns that a dead process ran are INTERRUPTED; return how many they were."""
    interrupted = 0
    for turn_id, turn in before.turns.items():
        now = after.turns[turn_id]
        if turn.state in ACTIVE:
            interrupted += 1
            how = (now.state, now.error.reason)
            assert how == (v1.TURN_STATE_INTERRUPTED, v1.ERROR_REASON_SERVER_KILLED), f"{turn_id} ended as {how}"
    return interrupted


def check_ran(before: Contents, after: Contents) -> None:
    """Turns that waited when the last process died have run."""
    for turn_id, turn in before.turns.items():
        now = after.turns[turn_id]
        if turn.state == v1.TURN_STATE_QUEUED:
            ran = (v1.TURN_STATE_COMPLETED, v1.TURN_STATE_FAILED)
            assert now.state in ran, f"{turn_id} waited, and became {v1.TurnState.Name(now.state)}"
            assert now.attempt == 1


async def finish_turns(caller: load.Caller, sessions: list[str]) -> None:
    """Let everything that waits run to its end, allowing what is asked."""
    await asyncio.gather(*(_finish_session(caller, session_id) for session_id in sessions))


async def _finish_session(caller: load.Caller, session_id: str) -> None:
    active = [v1.TURN_STATE_QUEUED, *ACTIVE]
    listing = v1.ListTurnsRequest(session_id=session_id, states=active, page_size=500)
    for turn in reversed((await caller.api.turns.ListTurns(listing, timeout=CALL_SECONDS)).turns):
        while (await asyncio.wait_for(caller.api.wait(turn), CALL_SECONDS)).state == v1.TURN_STATE_INPUT_REQUIRED:
            for pending in await caller.api.pending(v1.Session(session_id=session_id)):
                await caller.api.respond(pending, allow=v1.Allow())


def check_requests(contents: Contents, known: Known) -> None:
    """What was acknowledged is there exactly once; what was not, at most once."""
    if known.deleting:
        return
    events = [wire.event(data) for data in contents.logs[known.session_id]]
    received = [event for event in events if event.HasField("message_received")]
    resolved = {e.input_resolved.input_request_id: e for e in events if e.HasField("input_resolved")}
    for sent in known.sent:
        if sent.kind == "start":
            _check_start(sent, received)
        elif sent.kind == "respond" and sent.answer is not None:
            answer = resolved[sent.request.input_request_id].input_resolved
            assert answer.response == sent.request.response, f"{sent.request} was acknowledged; the log has {answer}"
        elif sent.kind == "cancel" and sent.answer is not None:
            assert contents.turns[sent.request.turn_id] == sent.answer.turn, "a turn that was cancelled changed"


def _check_start(sent: Sent, received: list[v1.Event]) -> None:
    accepted = [e.turn_id for e in received if e.message_received.message.parts[0].text.startswith(f"{sent.marker} ")]
    if sent.answer is not None:
        assert accepted == [sent.answer.turn.turn_id], f"{sent.request} was acknowledged; the log has {accepted}"
    assert len(accepted) <= 1, f"{sent.request} was accepted more than once"


async def repeat_requests(caller: load.Caller, sent: list[Sent]) -> None:
    """Send every request again: those that had an answer get it again, others are done now, or refused as late."""
    for each in sent:
        try:
            await asyncio.wait_for(caller.send(each), CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            late = each.answer is None and each.kind in ("respond", "cancel")
            assert late, f"{each.request} was answered, and is refused: {error}"
            assert load.reason(error) == "INPUT_ALREADY_RESOLVED"


async def check_creations(caller: load.Caller, creations: list[Sent]) -> None:
    """Every session that was asked for is there once."""
    for sent in creations:
        where = v1.ListSessionsRequest(metadata=sent.request.metadata)
        found = [each.session_id for each in (await caller.api.sessions.ListSessions(where)).sessions]
        assert found == [sent.answer.session.session_id], f"one request made {found}"
