"""Turns over gRPC: one at a time, in order, ended once."""

import asyncio

import grpc
import pytest
from server_api import Api, Refused, kinds, say, script

from karta import v1
from karta_server.error_codes import code_of

SLOW = script([{"text": "working", "pace": 0.01}, {"delay": 60}])
ASKS = script([{"tool": "Bash", "input": {"command": "date"}}], [{"text": "done"}])


async def until(api: Api, turn: v1.Turn, kind: str) -> v1.Event:
    """Return the turn's first event of a kind."""
    request = v1.WatchTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id, kinds=[kind])
    stream = api.turns.WatchTurn(request)
    async for frame in stream:
        for event in frame.events:
            if event.WhichOneof("kind") == kind:
                stream.cancel()
                return event
    raise AssertionError(f"the turn ended without {kind}")


async def test_a_turn_from_message_to_end(api: Api) -> None:
    session = await api.create()
    streamed = [
        event
        async for frame in api.turns.RunTurn(v1.RunTurnRequest(start=say(session, "hello")))
        for event in frame.events
    ]
    assert kinds(streamed) == [
        *("message_received", "turn_started", "step_start", "text", "text"),
        *("step_finish", "message_completed", "turn_finished"),
    ]
    assert "".join(event.text.text for event in streamed) == "echo[1]: hello"
    assert [event.sequence for event in streamed] == list(range(2, 10))
    assert await api.events(session, after_sequence=1) == streamed
    turn = await api.get(v1.Turn(session_id=session.session_id, turn_id=streamed[0].turn_id))
    assert (turn.state, turn.text, turn.attempt) == (v1.TURN_STATE_COMPLETED, "echo[1]: hello", 1)
    assert (turn.first_sequence, turn.last_sequence) == (2, 9)
    assert turn.usage.output_tokens == 2
    assert turn.traceparent
    after = (await api.sessions.GetSession(v1.GetSessionRequest(session_id=session.session_id))).session
    assert (after.active_turn_id, after.queued_turn_count, after.latest_sequence) == ("", 0, 9)
    assert after.usage == turn.usage


async def test_a_busy_session_queues_in_order_and_runs_one_at_a_time(api: Api) -> None:
    session = await api.create()
    turns = [await api.start(session, script([{"delay": 0.02}, {"text": f"{n}"}])) for n in range(8)]
    assert [turn.state for turn in turns] == [v1.TURN_STATE_RUNNING] + [v1.TURN_STATE_QUEUED] * 7
    assert [(await api.wait(turn)).text for turn in turns] == [str(n) for n in range(8)]
    running: list[str] = []
    order: list[str] = []
    for event in await api.events(session):
        if event.HasField("turn_started"):
            running.append(event.turn_id)
            order.append(event.turn_id)
        elif event.HasField("turn_finished"):
            running.remove(event.turn_id)
        elif not event.HasField("message_received") and not event.HasField("turn_queued") and event.turn_id:
            assert running == [event.turn_id]
        assert len(running) <= 1
    assert order == [turn.turn_id for turn in turns]


async def test_two_turns_sent_at_once_do_not_run_at_once(api: Api) -> None:
    session = await api.create()
    turns = await asyncio.gather(*(api.start(session, f"{n}") for n in range(20)))
    assert sum(turn.state == v1.TURN_STATE_RUNNING for turn in turns) == 1
    done = await asyncio.gather(*(api.wait(turn) for turn in turns))
    assert {turn.state for turn in done} == {v1.TURN_STATE_COMPLETED}
    numbers = sorted(turn.text.split("]")[0] for turn in done)
    assert numbers == sorted(f"echo[{n}" for n in range(1, 21))


async def test_reject_and_a_full_queue(api: Api, server: object) -> None:
    session = await api.create()
    active = await api.start(session, SLOW)
    with Refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY") as refused:
        await api.start(session, "now!", busy_policy=v1.BUSY_POLICY_REJECT)
    assert refused.metadata["active_turn_id"] == active.turn_id
    for n in range(100):
        await api.start(session, f"{n}")
    before = await api.events(session)
    with Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL") as refused:
        await api.start(session, "one too many")
    assert refused.metadata == {"limit": "100"}
    assert len(await api.events(session)) == len(before), "a refused message leaves no trace"


async def test_cancel_queued_and_running(api: Api) -> None:
    session = await api.create()
    running, first, second = [await api.start(session, text) for text in (SLOW, "first", "second")]
    cancelled = await api.cancel(first, reason="not needed")
    assert (cancelled.state, cancelled.attempt) == (v1.TURN_STATE_CANCELLED, 0)
    assert "not needed" in cancelled.state_reason
    await until(api, running, "text")
    stopped = await api.cancel(running)
    assert stopped.state == v1.TURN_STATE_CANCELLED
    assert "developer" in stopped.state_reason
    assert await api.cancel(running) == stopped, "a terminal turn stays as it is"
    last = await api.wait(second)
    assert (last.state, last.text) == (v1.TURN_STATE_COMPLETED, "echo[2]: second")
    finished = [e.turn_id for e in await api.events(session, kinds=["turn_finished"])]
    assert sorted(finished) == sorted(turn.turn_id for turn in (running, first, second))


async def test_nothing_of_a_cancelled_turn_comes_after_its_end(api: Api) -> None:
    session = await api.create()
    for n in range(10):
        turn = await api.start(session, script([{"text": "word " * 200, "pace": 0.001}]))
        await until(api, turn, "text")
        await api.cancel(turn)
        assert (await api.send(session, f"{n}")).text.endswith(f": {n}")
    ended: set[str] = set()
    for event in await api.events(session):
        assert event.turn_id not in ended
        if event.HasField("turn_finished"):
            ended.add(event.turn_id)


async def test_cancel_at_any_moment_of_the_beginning_is_terminal(api: Api) -> None:
    session = await api.create()

    async def start_and_cancel(number: int) -> v1.Turn:
        turn = await api.start(session, SLOW)
        for _ in range(number % 7):
            await asyncio.sleep(0)
        return await api.cancel(turn)

    ended = await asyncio.gather(*(start_and_cancel(number) for number in range(60)))
    assert {turn.state for turn in ended} == {v1.TURN_STATE_CANCELLED}
    assert (await api.send(session, "after")).state == v1.TURN_STATE_COMPLETED


async def test_cancel_while_waiting_for_input_resolves_the_request(api: Api) -> None:
    session = await api.create()
    turn = await api.send(session, ASKS)
    assert turn.state == v1.TURN_STATE_INPUT_REQUIRED
    (request,) = await api.pending(session)
    assert (await api.cancel(turn)).state == v1.TURN_STATE_CANCELLED
    assert not await api.pending(session)
    with Refused(grpc.StatusCode.FAILED_PRECONDITION, "INPUT_ALREADY_RESOLVED"):
        await api.respond(request, allow=v1.Allow())
    tail = (await api.events(session))[-3:]
    assert kinds(tail) == ["input_resolved", "tool_result", "turn_finished"]
    assert tail[1].tool_result.outcome == v1.TOOL_OUTCOME_UNKNOWN


async def test_a_turn_outlives_its_client(api: Api) -> None:
    session = await api.create()
    stream = api.turns.RunTurn(v1.RunTurnRequest(start=say(session, script([{"delay": 0.3}, {"text": "still here"}]))))
    frame = await stream.read()
    stream.cancel()
    turn = await api.wait(v1.Turn(session_id=session.session_id, turn_id=frame.events[0].turn_id))
    assert (turn.state, turn.text) == (v1.TURN_STATE_COMPLETED, "still here")


async def test_the_same_request_id_starts_one_turn(api: Api) -> None:
    session = await api.create()
    turns = await asyncio.gather(*(api.start(session, "hello", request_id="r1") for _ in range(10)))
    assert len({turn.turn_id for turn in turns}) == 1
    await api.wait(turns[0])
    streamed = api.turns.RunTurn(v1.RunTurnRequest(start=say(session, "hello", request_id="r1")))
    assert [event.turn_id async for frame in streamed for event in frame.events][-1] == turns[0].turn_id
    with Refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await api.start(session, "something else", request_id="r1")
    listed = await api.turns.ListTurns(v1.ListTurnsRequest(session_id=session.session_id))
    assert len(listed.turns) == 1


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([{"error": 429}], v1.ERROR_REASON_MODEL_RATE_LIMITED),
        ([{"error": 500}], v1.ERROR_REASON_MODEL_UNAVAILABLE),
        ([{"error": 401}], v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED),
        ([{"text": "so far so good"}, {"drop": True}], v1.ERROR_REASON_HARNESS_CRASHED),
    ],
)
async def test_a_failing_turn_ends_with_its_reason_and_the_session_goes_on(
    api: Api, blocks: list[dict[str, object]], reason: int
) -> None:
    session = await api.create()
    turn = await api.send(session, script(blocks))
    assert (turn.state, turn.error.reason) == (v1.TURN_STATE_FAILED, reason)
    assert turn.error.code == code_of(reason), "a harness need not know the codes"
    last = (await api.events(session))[-1]
    assert last.turn_finished.error.reason == reason
    assert (await api.send(session, "again")).state == v1.TURN_STATE_COMPLETED


async def test_wait_has_a_limit_and_tells_that_the_turn_goes_on(api: Api) -> None:
    session = await api.create()
    turn = await api.start(session, SLOW)
    request = v1.WaitTurnRequest(session_id=session.session_id, turn_id=turn.turn_id)
    request.timeout.nanos = 50_000_000
    with Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMEOUT"):
        await api.turns.WaitTurn(request)
    assert (await api.get(turn)).state == v1.TURN_STATE_RUNNING


@pytest.mark.parametrize(
    ("message", "field", "reason"),
    [
        (v1.Message(), "message.parts", "FIELD_REQUIRED"),
        (v1.Message(parts=[v1.Part(text=" \n")]), "message.parts[0].text", "FIELD_REQUIRED"),
        (v1.Message(parts=[v1.Part(text="x" * 300_000)]), "message", "FIELD_TOO_LARGE"),
    ],
)
async def test_bad_messages_are_refused(api: Api, message: v1.Message, field: str, reason: str) -> None:
    session = await api.create()
    with Refused(grpc.StatusCode.INVALID_ARGUMENT, reason) as refused:
        await api.turns.StartTurn(v1.StartTurnRequest(session_id=session.session_id, message=message))
    assert refused.metadata["field"] == field


async def test_more_turns_than_places_wait_for_one(api: Api) -> None:
    sessions = [await api.create() for _ in range(40)]
    turns = await asyncio.gather(*(api.start(session, script([{"delay": 0.2}, {"text": "x"}])) for session in sessions))
    states = [turn.state for turn in turns]
    assert states.count(v1.TURN_STATE_RUNNING) == 32
    assert states.count(v1.TURN_STATE_QUEUED) == 8
    done = await asyncio.gather(*(api.wait(turn) for turn in turns))
    assert {turn.state for turn in done} == {v1.TURN_STATE_COMPLETED}


async def test_long_tool_text_is_cut_and_said_so(api: Api) -> None:
    session = await api.create()
    await api.send(session, script([{"tool": "Read", "input": {"file": "x" * 70_000}}], [{"text": "ok"}]))
    use = next(e.tool_use for e in await api.events(session) if e.HasField("tool_use"))
    assert len(use.input.encode()) <= 64 * 1024
    assert use.omitted_bytes > 0
