"""Converse: one session on one stream, with a unary equivalent for each command."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from server_api import Api, Refused, kinds, say, script

from karta import v1

ASKS = script([{"tool": "Bash", "input": {"command": "date"}}], [{"text": "done"}])


def message(text: str) -> v1.StartTurnRequest:
    return say(v1.Session(), text)


async def test_a_turn_with_an_approval_on_one_stream(api: Api) -> None:
    session = await api.create()
    stream = api.turns.Converse()
    await stream.write(v1.ConverseRequest(command_id="a", open=v1.OpenConversation(session_id=session.session_id)))
    opened = (await stream.read()).command_result
    assert (opened.command_id, opened.opened.session_id) == ("a", session.session_id)
    await stream.write(v1.ConverseRequest(command_id="b", start_turn=message(ASKS)))
    events: list[v1.Event] = []
    results: dict[str, v1.CommandResult] = {}
    while not events or not events[-1].HasField("turn_finished"):
        response = await stream.read()
        if response.HasField("command_result"):
            results[response.command_result.command_id] = response.command_result
        for event in response.frame.events:
            events.append(event)
            if event.HasField("input_required"):
                respond = v1.RespondToInputRequest(
                    input_request_id=event.input_required.input_request.input_request_id,
                    response=v1.InputResponse(allow=v1.Allow()),
                )
                await stream.write(v1.ConverseRequest(command_id="c", respond=respond))
    await stream.done_writing()
    while (response := await stream.read()) is not grpc.aio.EOF:
        if response.HasField("command_result"):
            results[response.command_result.command_id] = response.command_result
    assert results["b"].turn_started.turn.turn_id == events[-1].turn_id
    assert results["c"].responded.input_request.state == v1.INPUT_STATE_ANSWERED
    assert [event.sequence for event in events] == list(range(2, 2 + len(events)))
    assert events == await api.events(session, after_sequence=1)


async def test_a_failed_command_fails_alone(api: Api) -> None:
    session = await api.create()
    other = await api.create()

    async def commands() -> AsyncIterator[v1.ConverseRequest]:
        yield v1.ConverseRequest(command_id="1", open=v1.OpenConversation(session_id=session.session_id))
        yield v1.ConverseRequest(command_id="2", start_turn=v1.StartTurnRequest())
        yield v1.ConverseRequest(command_id="3", start_turn=say(other, "not here"))
        yield v1.ConverseRequest(command_id="4", open=v1.OpenConversation(session_id=session.session_id))
        yield v1.ConverseRequest(command_id="5")
        yield v1.ConverseRequest(command_id="6", start_turn=message("fine"))

    results: dict[str, v1.CommandResult] = {}
    events: list[v1.Event] = []
    async for response in api.turns.Converse(commands()):
        events += response.frame.events
        if response.HasField("command_result"):
            results[response.command_result.command_id] = response.command_result
    reasons = {key: result.error.reason for key, result in results.items() if result.HasField("error")}
    assert reasons == {
        "2": v1.ERROR_REASON_FIELD_REQUIRED,
        "3": v1.ERROR_REASON_FIELD_INVALID,
        "4": v1.ERROR_REASON_FIELD_INVALID,
        "5": v1.ERROR_REASON_FIELD_REQUIRED,
    }
    assert results["6"].HasField("turn_started")
    assert kinds(events)[-1] == "turn_finished", "closed by the client, the stream ends with its turns"


async def test_the_first_command_opens(api: Api) -> None:
    async def commands() -> AsyncIterator[v1.ConverseRequest]:
        yield v1.ConverseRequest(command_id="1", start_turn=message("hello"))

    with Refused(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"):
        async for _ in api.turns.Converse(commands()):
            pass


async def test_cancel_on_the_stream_and_history_from_the_beginning(api: Api) -> None:
    session = await api.create()
    turn = await api.start(session, script([{"delay": 60}]))

    async def commands() -> AsyncIterator[v1.ConverseRequest]:
        opening = v1.OpenConversation(session_id=session.session_id, after_sequence=0)
        yield v1.ConverseRequest(command_id="1", open=opening)
        yield v1.ConverseRequest(command_id="2", cancel=v1.CancelTurnRequest(turn_id=turn.turn_id))
        await asyncio.sleep(0.1)

    events: list[v1.Event] = []
    cancelled = v1.Turn()
    async for response in api.turns.Converse(commands()):
        events += response.frame.events
        if response.command_result.HasField("cancelled"):
            cancelled = response.command_result.cancelled.turn
    assert cancelled.state == v1.TURN_STATE_CANCELLED
    assert events[0].HasField("session_created")


async def test_many_conversations_of_one_session_see_each_other(api: Api) -> None:
    session = await api.create()

    async def converse(number: int) -> list[v1.Event]:
        async def commands() -> AsyncIterator[v1.ConverseRequest]:
            opening = v1.OpenConversation(session_id=session.session_id, after_sequence=0)
            yield v1.ConverseRequest(command_id="1", open=opening)
            yield v1.ConverseRequest(command_id="2", start_turn=message(f"{number}"))

        return [e async for response in api.turns.Converse(commands()) for e in response.frame.events]

    seen = await asyncio.gather(*(converse(number) for number in range(10)))
    everything = await api.events(session)
    for events in seen:
        assert events == everything[: len(events)]
