"""Input requests over gRPC: recorded first, answered once."""

import asyncio
import json

import grpc
import pytest
from server_api import Api, Refused, kinds, script

from karta import v1

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INPUT = {"command": "touch x"}
ASKS = script([{"text": "I need a tool."}, {"tool": "Bash", "input": INPUT}], [{"text": "done"}])
QUESTION = {
    "question": "Which colour?",
    "options": [{"label": "Red"}, {"label": "Blue", "description": "like the sky"}],
}
QUESTIONS = script([{"tool": "AskUserQuestion", "input": {"questions": [QUESTION]}}], [{"text": "thanks"}])


async def asked(api: Api, text: str = ASKS) -> tuple[v1.Session, v1.Turn, v1.InputRequest]:
    session = await api.create()
    turn = await api.send(session, text)
    assert turn.state == v1.TURN_STATE_INPUT_REQUIRED
    (request,) = await api.pending(session)
    return session, turn, request


async def test_the_request_names_the_exact_call(api: Api) -> None:
    session, turn, request = await asked(api)
    assert (request.kind, request.tool_name) == (v1.INPUT_KIND_TOOL_PERMISSION, "Bash")
    assert json.loads(request.tool_input) == INPUT
    assert (request.session_id, request.turn_id) == (session.session_id, turn.turn_id)
    events = await api.events(session)
    assert kinds(events)[-1] == "input_required"
    assert events[-1].input_required.input_request == request
    use = next(e.tool_use for e in events if e.HasField("tool_use"))
    assert use.tool_use_id == request.tool_use_id
    now = (await api.sessions.GetSession(v1.GetSessionRequest(session_id=session.session_id))).session
    assert (now.pending_input_count, now.active_turn_id) == (1, turn.turn_id)


async def test_allow_lets_the_call_run_and_records_who_said_so(api: Api) -> None:
    session, turn, request = await asked(api)
    answered = await api.respond(request, allow=v1.Allow())
    assert (answered.state, answered.responder) == (v1.INPUT_STATE_ANSWERED, "developer")
    done = await api.wait(turn)
    assert (done.state, done.text) == (v1.TURN_STATE_COMPLETED, "done")
    events = await api.events(session)
    result = next(e.tool_result for e in events if e.HasField("tool_result"))
    assert (result.outcome, result.output) == (v1.TOOL_OUTCOME_DONE, f"Bash {json.dumps(INPUT)}")
    resolved = next(e.input_resolved for e in events if e.HasField("input_resolved"))
    assert (resolved.input_request_id, resolved.responder) == (request.input_request_id, "developer")
    assert resolved.response.HasField("allow")
    fetched = await api.inputs.GetInputRequest(v1.GetInputRequestRequest(input_request_id=request.input_request_id))
    assert fetched.input_request == answered


async def test_deny_reaches_the_agent_with_its_message(api: Api) -> None:
    session, turn, request = await asked(api)
    await api.respond(request, deny=v1.Deny(message="use the other branch"))
    assert (await api.wait(turn)).state == v1.TURN_STATE_COMPLETED
    result = next(e.tool_result for e in await api.events(session) if e.HasField("tool_result"))
    assert (result.outcome, result.output) == (v1.TOOL_OUTCOME_FAILED, "use the other branch")


async def test_deny_with_interrupt_ends_the_turn(api: Api) -> None:
    _, turn, request = await asked(api)
    await api.respond(request, deny=v1.Deny(interrupt=True))
    assert (await api.wait(turn)).state == v1.TURN_STATE_CANCELLED


async def test_updated_input_is_what_runs(api: Api) -> None:
    session, turn, request = await asked(api)
    await api.respond(request, allow=v1.Allow(updated_input='{"command": "true"}'))
    await api.wait(turn)
    result = next(e.tool_result for e in await api.events(session) if e.HasField("tool_result"))
    assert result.output == 'Bash {"command": "true"}'


async def test_allow_for_the_session_covers_that_tool_there_alone(api: Api) -> None:
    session, turn, request = await asked(api)
    await api.respond(request, allow=v1.Allow(scope=v1.ALLOW_SCOPE_SESSION))
    await api.wait(turn)
    assert (await api.send(session, ASKS)).state == v1.TURN_STATE_COMPLETED
    other_tool = await api.send(session, script([{"tool": "Write", "input": {}}]))
    assert other_tool.state == v1.TURN_STATE_INPUT_REQUIRED
    await api.cancel(other_tool)
    assert (await api.send(await api.create(), ASKS)).state == v1.TURN_STATE_INPUT_REQUIRED


async def test_a_question_is_answered_by_its_text(api: Api) -> None:
    session, turn, request = await asked(api, QUESTIONS)
    assert request.kind == v1.INPUT_KIND_QUESTION
    assert [option.label for option in request.questions[0].options] == ["Red", "Blue"]
    with Refused(INVALID, "FIELD_INVALID"):
        await api.respond(request, allow=v1.Allow())
    with Refused(INVALID, "FIELD_REQUIRED"):
        await api.respond(request, answers=v1.Answers())
    with Refused(INVALID, "FIELD_INVALID"):
        await api.respond(request, answers=v1.Answers(by_question={"Which?": v1.Answer(labels=["Red"])}))
    with Refused(INVALID, "FIELD_INVALID"):
        await api.respond(request, answers=v1.Answers(by_question={"Which colour?": v1.Answer(labels=["Red", "Blue"])}))
    await api.respond(request, answers=v1.Answers(by_question={"Which colour?": v1.Answer(labels=["Blue"])}))
    assert (await api.wait(turn)).text == "thanks"
    result = next(e.tool_result for e in await api.events(session) if e.HasField("tool_result"))
    assert json.loads(result.output) == {"Which colour?": ["Blue"]}


async def test_of_twenty_answers_at_once_the_first_wins(api: Api) -> None:
    session, turn, request = await asked(api)
    await api.sessions.AddParticipant(
        v1.AddParticipantRequest(session_id=session.session_id, participant=v1.Participant(participant_id="p"))
    )
    answers = await asyncio.gather(
        *(api.respond(request, deny=v1.Deny(message=f"{n}")) for n in range(20)), return_exceptions=True
    )
    won = [answer for answer in answers if isinstance(answer, v1.InputRequest)]
    assert len(won) == 1
    for error in answers:
        if isinstance(error, grpc.aio.AioRpcError):
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    again = await api.respond(request, deny=won[0].response.deny)
    assert again == won[0], "the same answer again is no error"
    await api.wait(turn)
    assert kinds(await api.events(session)).count("input_resolved") == 1


@pytest.mark.parametrize(
    ("response", "reason", "field"),
    [
        ({}, "FIELD_REQUIRED", "response"),
        ({"answers": v1.Answers()}, "FIELD_INVALID", "response.answers"),
        ({"allow": v1.Allow(updated_input="[]")}, "FIELD_INVALID", "response.allow.updated_input"),
        ({"allow": v1.Allow(updated_input="{")}, "FIELD_INVALID", "response.allow.updated_input"),
        ({"allow": v1.Allow(scope=9)}, "FIELD_INVALID", "response.allow.scope"),
        ({"deny": v1.Deny(message="x" * 300_000)}, "FIELD_TOO_LARGE", "response"),
    ],
)
async def test_bad_answers_are_refused_and_the_request_still_waits(
    api: Api, response: dict[str, object], reason: str, field: str
) -> None:
    session, turn, request = await asked(api)
    with Refused(INVALID, reason) as refused:
        await api.respond(request, **response)
    assert refused.metadata["field"] == field
    assert [r.input_request_id for r in await api.pending(session)] == [request.input_request_id]
    assert (await api.get(turn)).state == v1.TURN_STATE_INPUT_REQUIRED


async def test_watching_shows_what_waits_and_each_change(api: Api) -> None:
    _, _, first = await asked(api)
    stream = api.inputs.WatchInputRequests(v1.WatchInputRequestsRequest())

    async def next_requests() -> list[v1.InputRequest]:
        while True:
            frame = await stream.read()
            if frame.input_requests:
                return list(frame.input_requests)

    assert await next_requests() == [first]
    _, _, second = await asked(api)
    assert (await next_requests())[-1] == second
    answered = await api.respond(first, allow=v1.Allow())
    assert (await next_requests())[-1] == answered
    stream.cancel()
    listed = await api.inputs.ListInputRequests(v1.ListInputRequestsRequest())
    assert [r.input_request_id for r in listed.input_requests] == [second.input_request_id]
    everything = [v1.INPUT_STATE_PENDING, v1.INPUT_STATE_ANSWERED]
    listed = await api.inputs.ListInputRequests(v1.ListInputRequestsRequest(states=everything))
    assert [r.input_request_id for r in listed.input_requests] == [second.input_request_id, first.input_request_id]


async def test_two_calls_of_one_message_are_two_requests(api: Api) -> None:
    session = await api.create()
    two = script([{"tool": "Bash", "input": {"n": 1}}, {"tool": "Bash", "input": {"n": 2}}], [{"text": "done"}])
    turn = await api.send(session, two)
    (first,) = await api.pending(session)
    await api.respond(first, allow=v1.Allow())
    turn = await api.wait(turn)
    if turn.state == v1.TURN_STATE_RUNNING:
        turn = await api.wait(turn)
    (second,) = await api.pending(session)
    assert second.input_request_id != first.input_request_id
    await api.respond(second, deny=v1.Deny())
    assert (await api.wait(turn)).text == "done"
    results = [e.tool_result.outcome for e in await api.events(session) if e.HasField("tool_result")]
    assert results == [v1.TOOL_OUTCOME_DONE, v1.TOOL_OUTCOME_FAILED]
