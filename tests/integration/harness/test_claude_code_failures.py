import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from claude_harness import Claude, bash, every, finished, kinds, once_running, only, run, said, script

from karta import v1
from karta_server.errors import KartaError
from karta_server.harness.claude_code import ClaudeCodeAdapter
from karta_server.harness.contract import HarnessSettings

TOO_LONG = {"error": 400, "message": "prompt is too long: 210000 tokens > 200000 maximum"}


@pytest.mark.parametrize(
    ("block", "reason", "code", "retries"),
    [
        ({"error": 429}, v1.ERROR_REASON_MODEL_RATE_LIMITED, 8, 2),
        ({"error": 500}, v1.ERROR_REASON_MODEL_UNAVAILABLE, 14, 2),
        ({"error": 529}, v1.ERROR_REASON_MODEL_UNAVAILABLE, 14, 2),
        ({"error": 401}, v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED, 16, None),
        (TOO_LONG, v1.ERROR_REASON_PROMPT_TOO_LONG, 3, 0),
        ({"error": 400, "message": "no such thing"}, v1.ERROR_REASON_HARNESS_FAILED, 13, 0),
    ],
    ids=["429", "500", "529", "401", "too long", "400"],
)
async def test_a_failing_model_is_a_typed_error(
    claude: Claude, block: dict[str, Any], reason: int, code: int, retries: int | None
) -> None:
    session = await claude.open()

    events = await run(session, script([block]))

    end = finished(events)
    assert (end.state, end.error.reason, end.error.code) == (v1.TURN_STATE_FAILED, reason, code)
    assert only(events, "error") == end.error
    assert every(events, "text") == []
    assert every(events, "message_completed") == []
    again = every(events, "retrying")
    if retries is not None:
        assert [(retry.attempt, retry.max_attempts) for retry in again] == [(n + 2, 3) for n in range(retries)]
    for retry in again:
        assert (retry.error.reason, retry.error.code) == (reason, code)
        assert 0 < retry.delay.ToMilliseconds() < 60_000
    assert said(await run(session, "after it")).endswith(": after it")


async def test_retries_that_help_are_told_and_forgotten(claude: Claude) -> None:
    session = await claude.open()

    events = await run(session, script([{"error": 429, "retry_after": 0, "times": 1}, {"text": "at last"}]))

    assert kinds(events)[:3] == ["retrying", "step_start", "text"]
    assert finished(events).state == v1.TURN_STATE_COMPLETED
    assert only(events, "message_completed").text == "at last"


@pytest.mark.parametrize("failure", [{"drop": True}, {"sse_error": "overloaded_error"}], ids=["drop", "error"])
async def test_goes_on_after_a_broken_stream(claude: Claude, failure: dict[str, Any]) -> None:
    session = await claude.open()

    events = await run(session, script([{"text": "the beginning "}, {"delay": 0.3}, failure], [{"text": "the rest"}]))

    assert finished(events).state == v1.TURN_STATE_COMPLETED
    assert only(events, "message_completed").text == "the rest"
    assert said(events).endswith("the rest")


async def test_nobody_answering_is_the_model_unavailable(claude: Claude) -> None:
    session = await claude.open()
    await claude.model.close()

    end = finished(await run(session, "hello"))

    assert (end.state, end.error.reason) == (v1.TURN_STATE_FAILED, v1.ERROR_REASON_MODEL_UNAVAILABLE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_process_is_a_crash_and_the_next_one_goes_on(claude: Claude, number: int) -> None:
    session = await claude.open()
    assert said(await run(session, "one")) == "echo[1]: one"

    async def kill(event: v1.Event) -> None:
        if event.HasField("text"):
            os.kill(claude.program_pid(), number)

    with pytest.raises(KartaError) as failed:
        await run(session, script([{"text": "x" * 200, "pace": 0.3}]), "", kill)

    assert failed.value.reason == v1.ERROR_REASON_HARNESS_CRASHED
    assert failed.value.metadata == {"harness": "claude_code", "exit_code": str(128 + number)}
    assert claude.processes() == {}
    again = await claude.open(session.memory)
    # Whether the transcript has the prompt that the kill cut off depends on when it came.
    assert said(await run(again, "three")) in ("echo[2]: three", "echo[3]: three")


async def test_a_process_killed_before_its_first_word_does_no_harm(claude: Claude) -> None:
    session_id = "01920000-0000-7000-8000-000000000001"
    session = await claude.open(session_id=session_id)
    early = session.memory

    async def kill(event: v1.Event) -> None:
        if event.HasField("step_start"):
            os.kill(claude.program_pid(), signal.SIGKILL)

    with pytest.raises(KartaError):
        await run(session, script([{"text": "x" * 200, "pace": 0.3}]), "", kill)

    # Karta may have stored the memory of before the turn, or of during it: there may be a transcript or not.
    for memory in (session.memory, early):
        again = await claude.open(memory, session_id)
        events = await run(again, "on with it")
        assert said(events).endswith(": on with it")
        assert every(events, "harness_notice") == []
        await again.close()


async def test_memory_that_runs_ahead_of_the_transcript_begins_anew(claude: Claude) -> None:
    session_id = "01920000-0000-7000-8000-000000000002"
    never_ran = await claude.open(session_id=session_id)
    begun = never_ran.memory.replace(b'"begun": false', b'"begun": true')

    session = await claude.open(begun, session_id)
    events = await run(session, "hello")
    assert said(events) == "echo[1]: hello"
    assert every(events, "harness_notice") == []
    await session.close()

    for transcript in claude.home.rglob(f"{session_id}.jsonl"):
        transcript.unlink()
    again = await claude.open(session.memory, session_id)
    events = await run(again, "who am I")
    assert only(events, "harness_notice").topic == "conversation_lost"
    assert said(events) == "echo[1]: who am I"


async def test_a_process_that_died_between_turns_is_not_missed(claude: Claude) -> None:
    session = await claude.open()
    await run(session, "one")
    os.kill(claude.program_pid(), signal.SIGKILL)
    await claude.wait_for_processes(lambda left: not left)

    assert said(await run(session, "two")) == "echo[2]: two"


async def test_a_program_that_does_not_start_is_named_with_its_last_words(claude: Claude) -> None:
    broken = claude.root / "broken"
    broken.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 3\n")
    broken.chmod(0o755)
    adapter = ClaudeCodeAdapter(claude.settings(options={"cli_path": str(broken)}))
    session = await adapter.open("s", b"")

    with pytest.raises(KartaError, match="the disk is on fire") as failed:
        await run(session, "hello")
    assert failed.value.reason == v1.ERROR_REASON_HARNESS_START_FAILED


async def test_a_program_that_takes_too_long_to_start_is_given_up(claude: Claude) -> None:
    slow = claude.root / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    adapter = ClaudeCodeAdapter(claude.settings(options={"cli_path": str(slow)}, start_timeout_seconds=0.5))
    session = await adapter.open("s", b"")

    with pytest.raises(KartaError, match=r"longer than 0\.5 s") as failed:
        await run(session, "hello")
    assert failed.value.reason == v1.ERROR_REASON_HARNESS_START_FAILED


async def test_what_is_not_installed_is_said_with_how_to_install_it(claude: Claude, tmp_path: Path) -> None:
    settings = HarnessSettings(tmp_path, tmp_path, {"PATH": str(tmp_path)}, {"cli_path": "nowhere/claude"})
    adapter = ClaudeCodeAdapter(settings)

    harness = await adapter.describe()
    assert not harness.available
    assert str(tmp_path / "nowhere" / "claude") in harness.unavailable_reason
    with pytest.raises(KartaError) as failed:
        await adapter.open("s", b"")
    assert failed.value.reason == v1.ERROR_REASON_HARNESS_NOT_INSTALLED


async def test_a_crash_takes_running_tools_with_it(claude: Claude) -> None:
    session = await claude.open()

    async def kill() -> None:
        os.kill(claude.program_pid(), signal.SIGKILL)

    watch = once_running(claude, session, "sleep 63", kill)
    with pytest.raises(KartaError):
        await run(session, script([bash("setsid sleep 63 && touch never")]), "", watch)
    assert claude.processes() == {}


async def test_without_a_login_it_says_so(claude: Claude) -> None:
    environment = dict(claude.settings().environment)
    del environment["ANTHROPIC_API_KEY"]
    settings = HarnessSettings(claude.project, claude.root / "state", environment)
    session = await ClaudeCodeAdapter(settings).open("s", b"")

    end = finished(await run(session, "hello"))
    await session.close()

    assert (end.state, end.error.reason) == (v1.TURN_STATE_FAILED, v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED)
    assert "log in" in end.error.message


@pytest.mark.parametrize("delay_seconds", [0, 0.05, 0.2, 0.4])
async def test_closing_a_session_that_starts_leaves_nothing(claude: Claude, delay_seconds: float) -> None:
    session = await claude.open()
    turn = asyncio.create_task(run(session, script([{"text": "x" * 600, "pace": 0.2}])))
    await asyncio.sleep(delay_seconds)

    await session.close()

    with pytest.raises(KartaError):
        await asyncio.wait_for(turn, 10)
    assert claude.processes() == {}
    with pytest.raises(KartaError, match="was closed"):
        await run(session, "too late")


@pytest.mark.parametrize("delay_seconds", [0, 0.05, 0.2, 0.6])
async def test_cancelling_the_task_of_a_turn_leaves_nothing(claude: Claude, delay_seconds: float) -> None:
    session = await claude.open()
    turn = asyncio.create_task(run(session, script([{"text": "x" * 600, "pace": 0.2}])))
    await asyncio.sleep(delay_seconds)

    turn.cancel()

    with pytest.raises(asyncio.CancelledError):
        await turn
    await session.close()
    assert claude.processes() == {}
