"""The library as its users write it, on the real server."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from project_programs import PlainServer, script

from karta import v1
from karta_client import (
    AsyncKarta,
    ConflictError,
    DeadlineError,
    FailedPreconditionError,
    HumanAgent,
    InputRequest,
    InputRequiredError,
    InvalidArgumentError,
    Karta,
    NotFoundError,
    PermissionDeniedError,
    TurnCancelledError,
    TurnFailedError,
    traceparent,
)

BASH = [{"tool": "Bash", "input": {"command": "ls"}}]
ASK = script(BASH, [{"text": "done"}])
QUESTION = {
    "questions": [
        {"question": "Colour?", "header": "C", "multiSelect": False, "options": [{"label": "red"}, {"label": "blue"}]}
    ]
}
Asked = InputRequest[v1.InputResponse]


@pytest.fixture
def app(plain_server: PlainServer) -> Iterator[Karta]:
    with Karta(plain_server.address) as made:
        yield made


@pytest.fixture
async def async_app(plain_server: PlainServer) -> AsyncIterator[AsyncKarta]:
    async with AsyncKarta(plain_server.address) as made:
        yield made


def test_sessions_are_found_by_metadata(app: Karta) -> None:
    session = app.session(metadata={"customer_id": "abc123"})
    assert session.send_sync("one").text == "echo[1]: one"
    again = app.session(metadata={"customer_id": "abc123"})
    assert again.id == session.id
    response = again.send_sync("two")
    assert response.text == "echo[2]: two"
    assert response.usage.output_tokens == 2
    assert response.session is again
    assert app.session().id != app.session().id != session.id
    assert app.send_sync("three", metadata={"customer_id": "abc123"}).text == "echo[3]: three"
    assert [found.id for found in app.sessions({"customer_id": "abc123"})] == [session.id]
    assert [turn.text for turn in session.turns()] == ["echo[3]: three", "echo[2]: two", "echo[1]: one"]


def test_agents_and_handoff(app: Karta) -> None:
    assert app.send_sync("audit", agent="billing").text == "billing: echo[1]: audit"
    session = app.session()
    session.current_agent = app.agents["billing"]
    assert session.current_agent == "billing"
    assert session.send_sync("x").text == "billing: echo[1]: x"
    session.current_agent = None
    assert session.send_sync("x").text == "echo[2]: x"
    session.current_agent = "billing"
    assert app.session(id=session.id).current_agent == "billing"
    handoffs = [(event.from_agent, event.to_agent) for event in session.history(kinds=["agent_handoff"])]
    assert ("", "billing") in handoffs
    with pytest.raises(NotFoundError, match="billing") as caught:
        app.send_sync("x", agent="nobody")
    assert caught.value.reason == "AGENT_NOT_FOUND"
    assert caught.value.metadata["known"] == "billing"
    with pytest.raises(NotFoundError, match="known: billing"):
        app.agents["nobody"]


def test_participants_are_added_and_named(app: Karta) -> None:
    session = app.session()
    alice = HumanAgent(name="alice", display_name="Alice Chen")
    assert session.send_sync("help", participant=alice).text == "echo[1]: Alice Chen: help"
    assert session.send_sync("more", participant=alice).text == "echo[2]: Alice Chen: more"
    assert session.send_sync("by id", participant="alice").text == "echo[3]: Alice Chen: by id"
    stale = app.session(id=session.id)
    stale.raw.ClearField("participants")
    assert stale.send_sync("stale", participant=HumanAgent("alice", "Other")).text == "echo[4]: Alice Chen: stale"
    with pytest.raises(NotFoundError):
        session.send_sync("x", participant="bob")


def test_a_stream_is_the_whole_turn(app: Karta) -> None:
    events = list(app.stream("Explain quicksort"))
    assert events[0].type == "message_received"
    assert events[0].text == "Explain quicksort"
    assert "".join(event.text for event in events if event.type == "text") == "echo[1]: Explain quicksort"
    assert events[-1].type == "turn_finished"
    assert events[-1].state == v1.TURN_STATE_COMPLETED


def test_input_without_a_callback_raises_and_the_turn_goes_on_later(app: Karta) -> None:
    session = app.session()
    with pytest.raises(InputRequiredError) as caught:
        session.send_sync(ASK)
    error = caught.value
    assert [item.tool_name for item in error.inputs] == ["Bash"]
    with pytest.raises(InputRequiredError):
        session.wait(error.turn_id)
    answered = error.inputs[0].allow()
    assert answered.state == v1.INPUT_STATE_ANSWERED
    assert session.wait(error.turn_id).text == "done"
    with pytest.raises(FailedPreconditionError) as late:
        error.inputs[0].deny("no")
    assert late.value.reason == "INPUT_ALREADY_RESOLVED"


@pytest.mark.parametrize("where", ["app", "session", "send"])
def test_a_callback_answers(plain_server: PlainServer, where: str) -> None:
    asked: list[str] = []

    def allow(request: Asked) -> v1.InputResponse:
        asked.append(request.tool_input)
        return request.allow(updated_input={"command": "pwd"})

    def given(name: str) -> object:
        return allow if name == where else None

    with Karta(plain_server.address, on_input=given("app")) as app:
        session = app.session(on_input=given("session"))
        assert session.send_sync(ASK, on_input=given("send")).text == "done"
        results = [event for event in session.history() if event.type == "tool_result"]
    assert asked == ['{"command": "ls"}'] or asked == ['{"command":"ls"}']
    assert "pwd" in results[0].text


def test_an_async_callback_serves_blocking_code(app: Karta) -> None:
    async def deny(request: Asked) -> v1.InputResponse:
        await asyncio.sleep(0)
        return request.deny("not today")

    session = app.session()
    assert session.send_sync(ASK, on_input=deny).text == "done"
    assert any("not today" in event.text for event in session.history() if event.type == "tool_result")


async def test_an_async_callback_serves_blocking_code_in_a_loop(app: Karta) -> None:
    async def allow(request: Asked) -> v1.InputResponse:
        return request.allow()

    assert app.send_sync(ASK, on_input=allow).text == "done"


def test_several_tools_ask_one_after_the_other(app: Karta) -> None:
    text = script([*BASH, *BASH], BASH, [{"text": "end"}])
    asked: list[str] = []

    def allow(request: Asked) -> v1.InputResponse:
        asked.append(request.input_request_id)
        return request.allow()

    assert app.send_sync(text, on_input=allow).text == "end"
    assert len(set(asked)) == 3


def test_for_the_session_is_asked_once(app: Karta) -> None:
    asked: list[str] = []

    def allow(request: Asked) -> v1.InputResponse:
        asked.append(request.tool_name)
        return request.allow(scope="session")

    assert app.send_sync(script(BASH, BASH, [{"text": "end"}]), on_input=allow).text == "end"
    assert asked == ["Bash"]


def test_iterating_answers(app: Karta) -> None:
    types = []
    for event in app.stream(ASK):
        types.append(event.type)
        if event.type == "input_required":
            assert event.input.allow().state == v1.INPUT_STATE_ANSWERED
    assert types.index("input_required") < types.index("input_resolved") < types.index("tool_result")
    assert types[-1] == "turn_finished"


def test_a_callback_answers_a_stream(app: Karta) -> None:
    types = [event.type for event in app.stream(ASK, on_input=lambda request: request.allow())]
    assert types[-1] == "turn_finished"
    assert "input_resolved" in types


async def test_iterating_answers_async(async_app: AsyncKarta) -> None:
    types = []
    async for event in async_app.stream(ASK):
        types.append(event.type)
        if event.type == "input_required":
            await event.input.deny("no", interrupt=True)
    assert types[-1] == "turn_finished"
    assert event.state == v1.TURN_STATE_CANCELLED


async def test_iterating_a_plain_karta_async_is_awaited_too(app: Karta) -> None:
    async for event in app.stream(script([{"tool": "AskUserQuestion", "input": QUESTION}], [{"text": "ok"}])):
        if event.type == "input_required":
            await event.input.answer({"Colour?": "blue"})
        if event.type == "tool_result":
            assert "blue" in event.text
    assert event.state == v1.TURN_STATE_COMPLETED
    await app.aclose()


async def test_the_async_twin(async_app: AsyncKarta) -> None:
    session = await async_app.session({"k": "v"})
    assert (await session.send("one")).text == "echo[1]: one"
    await session.set_agent("billing")
    assert (await session.send("two", participant=HumanAgent("bob", "Bob"))).text == "billing: echo[2]: Bob: two"
    assert [found.id async for found in async_app.sessions({"k": "v"})] == [session.id]
    assert [turn.text async for turn in session.turns()][-1] == "echo[1]: one"
    assert (await session.history())[0].type == "session_created"
    assert "billing" in await async_app.list_agents()
    with pytest.raises(InputRequiredError) as caught:
        await session.send(ASK)
    assert [item.title for item in await session.pending_inputs()] == [item.title for item in caught.value.inputs]
    await caught.value.inputs[0].allow()
    assert (await session.wait(caught.value.turn_id)).text == "done"
    assert (await session.refresh()).raw.latest_sequence == (await session.history())[-1].sequence
    await session.delete()
    with pytest.raises(NotFoundError):
        await session.refresh()


async def test_a_blocking_callback_does_not_block_the_loop(async_app: AsyncKarta) -> None:
    beats = 0
    loop = asyncio.get_running_loop()

    def allow(request: Asked) -> v1.InputResponse:
        async def beat() -> None:
            nonlocal beats
            beats += 1

        asyncio.run_coroutine_threadsafe(beat(), loop).result(5)
        return request.allow()

    assert (await async_app.send(ASK, on_input=allow)).text == "done"
    assert beats == 1


def test_turns_that_do_not_answer(app: Karta) -> None:
    session = app.session()
    with pytest.raises(TurnFailedError) as failed:
        session.send_sync(script([{"error": 429}]))
    assert failed.value.reason == "MODEL_RATE_LIMITED"
    assert failed.value.turn.state == v1.TURN_STATE_FAILED
    with pytest.raises(DeadlineError) as late:
        session.send_sync(script([{"delay": 60}]), timeout=0.3)
    assert late.value.reason == "WAIT_TIMEOUT"
    turn_id = late.value.metadata["turn_id"]
    with pytest.raises(FailedPreconditionError) as busy:
        session.send_sync("x", busy="reject")
    assert busy.value.reason == "SESSION_BUSY"
    cancelled = session.cancel(reason="enough")
    assert cancelled is not None
    assert cancelled.turn_id == turn_id
    with pytest.raises(TurnCancelledError):
        session.wait(turn_id)
    assert session.cancel() is None


def test_bad_input_names_the_field(app: Karta) -> None:
    with pytest.raises(InvalidArgumentError) as empty:
        app.send_sync("")
    assert empty.value.metadata["field"]
    with pytest.raises(NotFoundError) as unknown:
        app.session(id="01a1f87f-4071-7000-a2e3-f78c8eca630c")
    assert unknown.value.reason == "SESSION_NOT_FOUND"
    session = app.session(participants=[HumanAgent("eve", role="observer")])
    with pytest.raises(PermissionDeniedError) as observer:
        session.send_sync("x", participant="eve")
    assert observer.value.reason == "PARTICIPANT_IS_OBSERVER"


def test_the_trace_reaches_the_server(plain_server: PlainServer) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with Karta(plain_server.address, traceparent=f"00-{trace}-00f067aa0ba902b7-01") as app:
        app.server_info()
    other = "af7651916cd43dd8448eb211c80319c0"
    token = traceparent.set(f"00-{other}-b7ad6b7169203331-01")
    with Karta(plain_server.address) as app:
        app.server_info()
    traceparent.reset(token)
    log = (plain_server.project / "plain.log").read_text()
    assert f"trace={trace}" in log
    assert f"trace={other}" in log


def test_a_request_id_used_twice_is_a_conflict(app: Karta) -> None:
    connection = app.connection()
    connection.open()
    session = app.session()
    request = v1.UpdateSessionRequest(request_id="r1", session=v1.Session(session_id=session.id, title="one"))
    request.update_mask.paths.append("title")
    connection.sessions.UpdateSession(request)
    request.session.title = "two"
    from karta_client.calls import Call

    with pytest.raises(ConflictError) as caught:
        app.call(Call("sessions", "UpdateSession", request))
    assert caught.value.reason == "REQUEST_ID_REUSED"
