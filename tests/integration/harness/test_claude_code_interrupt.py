import asyncio
import json
import uuid

import pytest
from claude_harness import Claude, bash, every, finished, kinds, once_running, only, run, said, script

from karta import v1
from karta_server.harness.contract import HarnessSession, Prompt

LATE = script([{"text": "late " * 100, "pace": 0.2}], [{"text": "later"}])


async def assert_cancelled_cleanly(session: HarnessSession, events: list[v1.Event]) -> None:
    end = finished(events)
    assert end.state == v1.TURN_STATE_CANCELLED
    assert not end.HasField("error")
    assert every(events, "message_completed") == []
    assert every(events, "error") == []
    following = await run(session, "next")
    assert kinds(following) == ["step_start", "text", "step_finish", "message_completed", "turn_finished"]
    assert said(following).endswith(": next")
    assert finished(following).state == v1.TURN_STATE_COMPLETED


async def test_stops_a_turn_that_writes(claude: Claude) -> None:
    session = await claude.open()

    async def stop(event: v1.Event) -> None:
        if event.HasField("text") and event.text.text.startswith("late late"):
            await session.interrupt()

    events = await run(session, LATE, "", stop)

    assert 0 < len(said(events)) < 250
    await assert_cancelled_cleanly(session, events)
    assert "".join(said(await run(session, "again"))).endswith(": again")


async def test_stops_a_tool_that_runs(claude: Claude) -> None:
    session = await claude.open()
    stop = once_running(claude, session, "sleep 60", session.interrupt)

    events = await run(session, script([bash("touch begun; sleep 60; touch made")], [{"text": "late"}]), "", stop)

    assert only(events, "tool_result").outcome == v1.TOOL_OUTCOME_FAILED
    await claude.wait_for_processes(lambda now: not any("sleep 60" in line for line in now.values()))
    await assert_cancelled_cleanly(session, events)
    assert not (claude.project / "made").exists()


async def test_stops_a_turn_that_waits_for_an_answer(claude: Claude) -> None:
    session = await claude.open()
    asked: list[v1.InputRequest] = []

    async def stop(event: v1.Event) -> None:
        if event.HasField("input_required"):
            asked.append(event.input_required.input_request)
            await session.interrupt()

    events = await run(session, script([bash("touch made")], [{"text": "late"}]), "", stop)

    await assert_cancelled_cleanly(session, events)
    asked[0].response.allow.scope = v1.ALLOW_SCOPE_SESSION
    await session.answer(asked[0])
    assert said(await run(session, "and on")).endswith(": and on")
    assert not (claude.project / "made").exists()


@pytest.mark.parametrize("delay_seconds", [0, 0.1, 0.2, 0.3, 0.4, 0.5])
async def test_an_interrupt_is_never_too_early(claude: Claude, delay_seconds: float) -> None:
    session = await claude.open()
    turn = asyncio.create_task(run(session, LATE))
    await asyncio.sleep(delay_seconds)

    await session.interrupt()

    events = await asyncio.wait_for(turn, 20)
    assert len(said(events)) < 450
    await assert_cancelled_cleanly(session, events)


async def test_an_early_interrupt_of_a_warm_session_counts(claude: Claude) -> None:
    session = await claude.open()
    await run(session, "warm")
    for _ in range(5):
        turn = asyncio.create_task(run(session, LATE))
        await asyncio.sleep(0)
        await session.interrupt()
        assert finished(await asyncio.wait_for(turn, 20)).state == v1.TURN_STATE_CANCELLED
    assert said(await run(session, "still here")).endswith(": still here")


async def test_stops_waiting_for_a_model_that_retries(claude: Claude) -> None:
    session = await claude.open()

    async def stop(event: v1.Event) -> None:
        if event.HasField("retrying"):
            await session.interrupt()

    events = await run(session, script([{"error": 529, "retry_after": 50}]), "", stop)

    await assert_cancelled_cleanly(session, events)


async def test_without_a_turn_it_does_nothing(claude: Claude) -> None:
    session = await claude.open()
    await session.interrupt()
    await run(session, "one")
    await session.interrupt()

    assert said(await run(session, "two")) == "echo[2]: two"


async def test_closing_ends_a_running_turn_and_all_its_processes(claude: Claude) -> None:
    session = await claude.open()
    turn = session.run_turn(Prompt(str(uuid.uuid4()), script([bash("setsid sleep 62 && touch made")]), ""))
    begin = 0.0

    async def close() -> None:
        nonlocal begin
        begin = asyncio.get_running_loop().time()
        await session.close()

    watch = once_running(claude, session, "sleep 62", close)
    async for event in turn:
        await watch(event)
        if begin:
            break

    assert asyncio.get_running_loop().time() - begin < 5
    assert claude.processes() == {}
    await turn.aclose()
    await session.close()
    assert json.loads(session.memory)["begun"]
