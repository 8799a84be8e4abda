import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    Message,
    PermissionResultAllow,
    PermissionResultDeny,
    RateLimitEvent,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolPermissionContext,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from claude_agent_sdk.types import RateLimitInfo

from karta import v1
from karta_server.errors import KartaError
from karta_server.harness.claude_code.approvals import MAX_TITLE_CHARACTERS, Approvals, to_request
from karta_server.harness.claude_code.failures import turn_failure
from karta_server.harness.claude_code.launch import launch
from karta_server.harness.claude_code.memory import Memory
from karta_server.harness.claude_code.translate import Translator
from karta_server.harness.claude_code.usage import CostMeter, to_usage
from karta_server.harness.contract import HarnessSettings

COUNTS = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 7,
    "cache_read_input_tokens": 11,
    "output_tokens": 5,
}


def stream(event: dict[str, Any], parent: str | None = None) -> StreamEvent:
    return StreamEvent(uuid="u", session_id="s", event=event, parent_tool_use_id=parent)


def start(message_id: str) -> StreamEvent:
    return stream({"type": "message_start", "message": {"id": message_id, "model": "claude-x"}})


def delta(**fields: str) -> StreamEvent:
    return stream({"type": "content_block_delta", "index": 0, "delta": fields})


def assistant(message_id: str, *content: Any, **fields: Any) -> AssistantMessage:
    return AssistantMessage(content=list(content), model="claude-x", message_id=message_id, **fields)


def result(**fields: Any) -> ResultMessage:
    base: dict[str, Any] = {
        "subtype": "success",
        "duration_ms": 1,
        "duration_api_ms": 1,
        "is_error": False,
        "num_turns": 1,
        "session_id": "s",
        "usage": COUNTS,
        "terminal_reason": "completed",
    }
    return ResultMessage(**{**base, **fields})


def translate(*messages: Message, agent: str = "") -> list[v1.Event]:
    translator = Translator(agent, CostMeter(0))
    return [event for message in messages for event in translator.events(message)]


def kinds(events: list[v1.Event]) -> list[str | None]:
    return [event.WhichOneof("kind") for event in events]


def test_text_comes_from_deltas_and_never_twice() -> None:
    events = translate(
        start("m1"),
        stream({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}}),
        delta(type="thinking_delta", thinking="hm"),
        delta(type="signature_delta", signature="x"),
        assistant("m1", ThinkingBlock(thinking="hm", signature="x")),
        stream({"type": "content_block_stop", "index": 0}),
        stream({"type": "content_block_start", "index": 1, "content_block": {"type": "text"}}),
        delta(type="text_delta", text="he"),
        delta(type="text_delta", text=""),
        delta(type="text_delta", text="llo"),
        assistant("m1", TextBlock(text="hello")),
        stream({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": COUNTS}),
        stream({"type": "message_stop"}),
        result(result="hello"),
        agent="helper",
    )

    assert kinds(events) == [
        "step_start",
        "reasoning",
        "text",
        "text",
        "step_finish",
        "message_completed",
        "turn_finished",
    ]
    assert [event.part_id for event in events[1:4]] == ["1", "2", "2"]
    assert [event.step for event in events] == [1, 1, 1, 1, 1, 0, 0]
    assert events[4].step_finish == v1.StepFinish(usage=to_usage(COUNTS), reason="end_turn")
    assert events[5].message_completed.text == "hello"
    assert [event.actor for event in events[:6]] == ["helper"] * 6


def test_text_that_was_not_streamed_comes_whole() -> None:
    events = translate(assistant("m1", TextBlock(text="from a local command")), result(result="from a local command"))

    assert kinds(events) == ["text", "message_completed", "turn_finished"]
    assert events[0].text.text == "from a local command"


def test_the_final_text_is_that_of_the_last_message() -> None:
    events = translate(
        assistant("m1", TextBlock(text="first")),
        assistant("m2", TextBlock(text="second ")),
        assistant("m2", TextBlock(text="part")),
        assistant("m3", TextBlock(text="a subagent's"), parent_tool_use_id="t"),
        result(result="another"),
    )

    assert events[-2].message_completed.text == "second part"


def test_a_tool_call_is_told_once_and_before_its_question() -> None:
    translator = Translator("", CostMeter(0))
    call = assistant("m1", ToolUseBlock(id="t1", name="Bash", input={"command": "ü"}))
    request = v1.InputRequest(tool_use_id="t1", tool_name="Bash", tool_input='{"command": "ü"}')

    events = [*translator.input_required(request), *translator.events(call)]

    assert kinds(events) == ["tool_use", "input_required"]
    assert events[0].tool_use == v1.ToolUse(tool_use_id="t1", name="Bash", input='{"command": "ü"}')
    assert events[1].source == v1.EVENT_SOURCE_HARNESS


@pytest.mark.parametrize(
    ("content", "is_error", "expected"),
    [
        ("done", None, v1.ToolResult(tool_use_id="t", outcome=v1.TOOL_OUTCOME_DONE, output="done")),
        ("bad", True, v1.ToolResult(tool_use_id="t", outcome=v1.TOOL_OUTCOME_FAILED, output="bad")),
        (None, False, v1.ToolResult(tool_use_id="t", outcome=v1.TOOL_OUTCOME_DONE)),
        (
            [{"type": "text", "text": "a"}, {"type": "image", "source": {}}, {"type": "text", "text": "b"}],
            False,
            v1.ToolResult(tool_use_id="t", outcome=v1.TOOL_OUTCOME_DONE, output="a\n[image]\nb"),
        ),
    ],
)
def test_results_of_tools_are_text(content: Any, is_error: bool | None, expected: v1.ToolResult) -> None:
    block = ToolResultBlock(tool_use_id="t", content=content, is_error=is_error)

    (event,) = translate(UserMessage(content=[block], parent_tool_use_id="p"))

    assert event.tool_result == expected
    assert (event.source, event.parent_tool_use_id) == (v1.EVENT_SOURCE_HARNESS, "p")


def test_what_the_harness_writes_as_the_user_is_no_event() -> None:
    words = "[Request interrupted by user]"
    assert translate(UserMessage(content=[TextBlock(text=words)]), UserMessage(content=words)) == []


def test_retries_are_counted_from_the_next_attempt() -> None:
    data = {"attempt": 1, "max_retries": 2, "retry_delay_ms": 1208.5, "error_status": 429, "error": "rate_limit"}

    (event,) = translate(SystemMessage(subtype="api_retry", data=data))

    assert (event.retrying.attempt, event.retrying.max_attempts) == (2, 3)
    assert event.retrying.delay.ToMilliseconds() == 1208
    assert event.retrying.error.reason == v1.ERROR_REASON_MODEL_RATE_LIMITED
    assert event.may_ignore


def test_compaction_and_limits_are_notices_and_the_rest_is_silence() -> None:
    info = RateLimitInfo(status="allowed_warning")
    events = translate(
        SystemMessage(subtype="status", data={"status": "compacting"}),
        SystemMessage(subtype="compact_boundary", data={"content": "Conversation compacted"}),
        RateLimitEvent(rate_limit_info=info, uuid="u", session_id="s"),
        SystemMessage(subtype="status", data={"status": "requesting"}),
        SystemMessage(subtype="init", data={}),
        SystemMessage(subtype="thinking_tokens", data={}),
        stream({"type": "ping"}),
        stream({"type": "message_start", "message": {"id": "m"}}, parent="t"),
    )

    assert [event.harness_notice.topic for event in events] == ["compacting", "compact_boundary", "rate_limit"]
    assert all(event.may_ignore for event in events)


def test_the_words_of_a_failed_call_are_no_text() -> None:
    failed = assistant("m1", TextBlock(text="API Error: 529 overloaded"), error="server_error")
    ended = result(is_error=True, api_error_status=529, terminal_reason="api_error", result="API Error: 529", usage={})

    error, finished = translate(failed, ended)

    assert error.error == finished.turn_finished.error
    assert finished.turn_finished.state == v1.TURN_STATE_FAILED
    assert finished.turn_finished.error.reason == v1.ERROR_REASON_MODEL_UNAVAILABLE
    assert "API Error: 529" in finished.turn_finished.error.message


@pytest.mark.parametrize("reason", ["aborted_streaming", "aborted_tools"])
def test_an_aborted_turn_is_cancelled_without_an_error(reason: str) -> None:
    (event,) = translate(result(subtype="error_during_execution", is_error=True, terminal_reason=reason))

    assert event.turn_finished.state == v1.TURN_STATE_CANCELLED
    assert not event.turn_finished.HasField("error")
    assert event.turn_finished.usage.input_tokens == 17


@pytest.mark.parametrize(
    ("fields", "kind", "reason", "words"),
    [
        ({"api_error_status": 429, "result": "r"}, "rate_limit", v1.ERROR_REASON_MODEL_RATE_LIMITED, "r"),
        ({"api_error_status": 403, "result": "r"}, "", v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED, "log in"),
        ({"result": "r"}, "authentication_failed", v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED, "r"),
        ({"api_error_status": 500, "result": "r"}, "unknown", v1.ERROR_REASON_MODEL_UNAVAILABLE, "r"),
        ({"terminal_reason": "api_error", "result": "refused"}, "", v1.ERROR_REASON_MODEL_UNAVAILABLE, "refused"),
        ({"api_error_status": 400, "result": "r"}, "invalid_request", v1.ERROR_REASON_HARNESS_FAILED, "r"),
        (
            {"api_error_status": 400, "terminal_reason": "prompt_too_long", "result": "r"},
            "invalid_request",
            v1.ERROR_REASON_PROMPT_TOO_LONG,
            "new session",
        ),
        ({"subtype": "error_max_turns", "errors": ["e1"]}, "", v1.ERROR_REASON_HARNESS_FAILED, "limit of model calls"),
        ({"subtype": "error_max_budget_usd"}, "", v1.ERROR_REASON_HARNESS_FAILED, "budget"),
        ({"subtype": "error_during_execution", "errors": ["e1"]}, "", v1.ERROR_REASON_HARNESS_FAILED, "e1"),
    ],
)
def test_failures_have_their_reasons(fields: dict[str, Any], kind: str, reason: int, words: str) -> None:
    failure = turn_failure(result(**{"is_error": True, "terminal_reason": None, **fields}), kind)

    assert failure.reason == reason
    assert words in failure.message


def test_cache_writes_are_a_part_of_the_input() -> None:
    assert to_usage(COUNTS) == v1.Usage(input_tokens=17, output_tokens=5, cache_read_tokens=11, cache_write_tokens=7)
    assert to_usage(None) == v1.Usage()
    assert to_usage({"input_tokens": None, "output_tokens": -1}) == v1.Usage()


def test_cost_is_what_was_added() -> None:
    fresh = CostMeter(0)
    assert [fresh.charge(total) for total in (0.001, 0.0015, None, 0.0015, 0.002)] == [1000, 500, None, 0, 500]
    assert CostMeter(1500).charge(0.002) == 500
    # A total below the last one began anew: all of it is new.
    restarted = CostMeter(1500)
    assert [restarted.charge(0.0004), restarted.charge(0.0006)] == [400, 200]


def test_an_unknown_cost_is_absent_and_a_free_one_is_not() -> None:
    (*_, unknown) = translate(result(total_cost_usd=None))
    (*_, free) = translate(result(total_cost_usd=0))

    assert not unknown.turn_finished.usage.HasField("cost_usd_micros")
    assert free.turn_finished.usage.HasField("cost_usd_micros")


def test_memory_survives_its_own_format_and_names_a_foreign_one() -> None:
    memory = Memory.load("01920000-0000-7000-8000-000000000001", b"")
    assert memory.conversation == "01920000-0000-7000-8000-000000000001"
    memory.turns, memory.agent, memory.cost_usd_micros = 3, "billing", 12
    assert Memory.load("other", memory.dump()) == memory
    assert Memory.load("not a uuid", b"").conversation == Memory.load("not a uuid", b"").conversation
    for foreign in (b"{", b"[]", b'{"version": 2}', b'{"version": 1, "surprise": 1}'):
        with pytest.raises(KartaError, match="cannot be read"):
            Memory.load("s", foreign)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[HarnessSettings]:
    agents = tmp_path / ".claude" / "agents"
    agents.mkdir(parents=True)
    for name, model in (("plain", ""), ("heir", "model: inherit\n"), ("small", "model: haiku\n")):
        (agents / f"{name}.md").write_text(f"---\nname: {name}\ndescription: d\n{model}---\n")
    return HarnessSettings(tmp_path, tmp_path / "state", {"PATH": "/bin"})


@pytest.mark.parametrize(
    ("before", "agent", "resume", "expected"),
    [
        ({}, "", False, ("", "")),
        ({}, "small", False, ("small", "")),
        ({}, "", True, ("", "")),
        ({}, "small", True, ("small", "")),
        ({"agent": "small", "agent_is_sticky": True}, "small", True, ("small", "")),
        ({"agent": "small", "agent_is_sticky": True}, "plain", True, ("plain", "default")),
        ({"agent": "small", "agent_is_sticky": True, "model": "m"}, "heir", True, ("heir", "m")),
        ({"agent": "small", "agent_is_sticky": True, "model": "m"}, "", True, ("claude", "m")),
        ({"agent": "", "agent_is_sticky": True, "model": "m"}, "", True, ("claude", "")),
        ({"agent": "plain", "agent_is_sticky": True}, "Explore", True, ("Explore", "")),
    ],
)
def test_a_change_of_agents_names_what_claude_code_would_keep(
    settings: HarnessSettings, before: dict[str, Any], agent: str, resume: bool, expected: tuple[str, str]
) -> None:
    start = launch(settings, Path("/bin/sh"), Memory("c", **before), agent, resume)

    assert (start.agent, start.model) == expected
    options = start.options(settings, Approvals().decide)
    assert (options.resume, options.session_id) == (("c", None) if resume else (None, "c"))


def context(tool_use_id: str = "t1", **fields: Any) -> ToolPermissionContext:
    return ToolPermissionContext(tool_use_id=tool_use_id, **fields)


def answered(tool_use_id: str, **response: Any) -> v1.InputRequest:
    return v1.InputRequest(tool_use_id=tool_use_id, response=v1.InputResponse(**response))


async def test_nobody_to_ask_is_a_denial() -> None:
    approvals = Approvals()
    assert isinstance(await approvals.decide("Bash", {}, context()), PermissionResultDeny)


async def test_a_failing_question_is_a_denial() -> None:
    approvals = Approvals()

    async def fail(request: v1.InputRequest) -> None:
        raise RuntimeError(request.tool_name)

    approvals.begin_turn(fail, lambda: True)
    assert isinstance(await approvals.decide("Bash", {}, context()), PermissionResultDeny)
    assert isinstance(await approvals.decide("AskUserQuestion", {}, context()), PermissionResultDeny)


@pytest.mark.parametrize(
    ("tool", "response"),
    [
        ("Bash", {}),
        ("Bash", {"answers": v1.Answers()}),
        ("AskUserQuestion", {"allow": v1.Allow()}),
        ("Bash", {"allow": v1.Allow(updated_input="nonsense")}),
    ],
)
async def test_an_answer_of_the_wrong_kind_is_a_denial(tool: str, response: dict[str, Any]) -> None:
    approvals = Approvals()
    asked: asyncio.Queue[v1.InputRequest] = asyncio.Queue()
    approvals.begin_turn(asked.put, lambda: True)
    questions = {"questions": [{"question": "q", "options": []}]}
    deciding = asyncio.create_task(approvals.decide(tool, questions, context()))
    await asked.get()

    approvals.answer(answered("t1", **response))

    decision = await deciding
    assert isinstance(decision, PermissionResultDeny)
    assert not decision.interrupt


async def test_an_answer_is_for_its_own_call_only() -> None:
    approvals = Approvals()
    asked: asyncio.Queue[v1.InputRequest] = asyncio.Queue()
    approvals.begin_turn(asked.put, lambda: True)
    first, second = (asyncio.create_task(approvals.decide("Bash", {"n": name}, context(name))) for name in ("t1", "t2"))
    assert [(await asked.get()).tool_use_id for _ in range(2)] == ["t1", "t2"]

    approvals.answer(answered("t3", allow=v1.Allow()))
    approvals.answer(answered("t2", allow=v1.Allow()))
    assert await second == PermissionResultAllow(updated_input={"n": "t2"})
    assert not first.done()
    approvals.end_turn()
    assert await first == PermissionResultDeny(message="The turn was stopped.", interrupt=True)


def test_the_title_is_one_short_line() -> None:
    request = to_request("Bash", {"command": "x\n" * 1000}, context(description="a\nb " * 100))

    assert "\n" not in request.title
    assert len(request.title) == MAX_TITLE_CHARACTERS
    assert json.loads(request.tool_input) == {"command": "x\n" * 1000}
    assert to_request("Bash", {}, context(title="May Claude run this?")).title == "May Claude run this?"


async def test_a_permission_for_the_session_holds_in_turns_only() -> None:
    approvals = Approvals()
    asked: asyncio.Queue[v1.InputRequest] = asyncio.Queue()
    ours = True
    approvals.begin_turn(asked.put, lambda: ours)
    deciding = asyncio.create_task(approvals.decide("Bash", {"n": 1}, context()))
    await asked.get()
    approvals.answer(answered("t1", allow=v1.Allow(scope=v1.ALLOW_SCOPE_SESSION)))
    assert await deciding == PermissionResultAllow(updated_input={"n": 1})
    assert await approvals.decide("Bash", {"n": 2}, context()) == PermissionResultAllow(updated_input={"n": 2})
    ours = False
    background = asyncio.create_task(approvals.decide("Bash", {"n": 3}, context()))
    await asked.get()
    approvals.end_turn()
    assert isinstance(await background, PermissionResultDeny)
    assert isinstance(await approvals.decide("Bash", {"n": 4}, context()), PermissionResultDeny)
