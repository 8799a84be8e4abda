"""Events as people read them: hand-made logs and the text that they become."""

import io

import pytest

from karta import v1
from karta_client.terminal import Renderer, make_console, usage_line


def render(*events: v1.Event, own: str = "own", asks: bool = False) -> str:
    file = io.StringIO()
    renderer = Renderer(make_console(file), asks=asks)
    renderer.own.add(own)
    for event in events:
        renderer.event(event)
    renderer.end_line()
    return file.getvalue()


def text(delta: str, part: str = "1", parent: str = "") -> v1.Event:
    return v1.Event(text=v1.TextDelta(text=delta), part_id=part, parent_tool_use_id=parent)


def tool(name: str, tool_input: str, tool_use_id: str = "t") -> v1.Event:
    return v1.Event(tool_use=v1.ToolUse(tool_use_id=tool_use_id, name=name, input=tool_input))


def result(output: str, outcome: v1.ToolOutcome = v1.TOOL_OUTCOME_DONE, tool_use_id: str = "t") -> v1.Event:
    return v1.Event(tool_result=v1.ToolResult(tool_use_id=tool_use_id, outcome=outcome, output=output))


def finished(state: v1.TurnState = v1.TURN_STATE_COMPLETED, **rest: object) -> v1.Event:
    return v1.Event(turn_finished=v1.TurnFinished(state=state, **rest))  # type: ignore[arg-type]


def message(said: str, **rest: str) -> v1.Event:
    received = v1.MessageReceived(message=v1.Message(parts=[v1.Part(text=said)]), display_name=rest.pop("name", ""))
    return v1.Event(message_received=received, **rest)  # type: ignore[arg-type]


def test_a_whole_turn() -> None:
    usage = v1.Usage(input_tokens=1200, output_tokens=56, cache_read_tokens=800, cost_usd_micros=12345)
    assert render(
        message("hello"),
        v1.Event(reasoning=v1.ReasoningDelta(text="hm, "), part_id="1"),
        v1.Event(reasoning=v1.ReasoningDelta(text="well"), part_id="1"),
        text("I ", "2"),
        text("look", "2"),
        tool("Bash", '{"command": "ls"}'),
        result("a\nb"),
        text("done", "3"),
        v1.Event(message_completed=v1.MessageCompleted(text="done")),
        finished(usage=usage),
    ).splitlines() == [
        "user: hello",
        "hm, well",
        "I look",
        "> Bash ls",
        "  a b",
        "done",
        "2,000 in (800 cached) · 56 out · $0.0123",
    ]


def test_deltas_are_written_when_they_come() -> None:
    file = io.StringIO()
    renderer = Renderer(make_console(file))
    renderer.event(text("half a "))
    assert file.getvalue() == "half a "
    renderer.event(text("line"))
    assert file.getvalue() == "half a line"


def test_a_final_message_without_deltas_is_shown() -> None:
    completed = v1.Event(message_completed=v1.MessageCompleted(text="the answer"))
    assert render(v1.Event(turn_started=v1.TurnStarted()), completed) == "the answer\n"


def test_a_subagents_text_does_not_count_as_the_answer() -> None:
    completed = v1.Event(message_completed=v1.MessageCompleted(text="the answer"))
    shown = render(v1.Event(turn_started=v1.TurnStarted()), text("inner", parent="t"), completed)
    assert shown.splitlines() == ["inner", "the answer"]


def test_ones_own_message_is_not_repeated() -> None:
    assert render(message("mine", turn_id="own"), message("theirs", turn_id="x", name="Alice Chen"), own="own") == (
        "Alice Chen: theirs\n"
    )


def test_a_named_speaker_is_the_actor_without_a_display_name() -> None:
    assert render(message("hi", actor="bob")) == "bob: hi\n"


def test_results_of_parallel_tools_say_whose_they_are() -> None:
    shown = render(tool("Read", "{}", "a"), tool("Bash", "{}", "b"), result("one", tool_use_id="a"))
    assert shown.splitlines()[-1] == "  Read: one"


def test_outcomes_of_tools() -> None:
    shown = render(
        result("no such file", v1.TOOL_OUTCOME_FAILED), result("", v1.TOOL_OUTCOME_UNKNOWN), result("")
    ).splitlines()
    assert shown == ["  failed: no such file", "  outcome unknown: (no output)", "  (no output)"]


def test_long_results_are_cut() -> None:
    (line,) = render(result("x" * 100_000)).splitlines()
    assert line.endswith("…")
    assert len(line) <= 80


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (finished(v1.TURN_STATE_CANCELLED, state_reason="cancelled by bob"), "cancelled: cancelled by bob"),
        (
            finished(
                v1.TURN_STATE_FAILED, error=v1.Error(reason=v1.ERROR_REASON_MODEL_RATE_LIMITED, message="slow down")
            ),
            "failed: MODEL_RATE_LIMITED: slow down",
        ),
        (v1.Event(turn_queued=v1.TurnQueued(ahead=2)), "queued behind 2"),
        (v1.Event(agent_handoff=v1.AgentHandoff(to_agent="billing")), "handoff from the default agent to billing"),
        (v1.Event(harness_notice=v1.HarnessNotice(topic="compaction", text="shorter")), "! compaction: shorter"),
        (
            v1.Event(error=v1.Error(reason=v1.ERROR_REASON_HARNESS_FAILED, message="odd")),
            "! HARNESS_FAILED: odd",
        ),
        (
            v1.Event(
                participant_joined=v1.ParticipantJoined(
                    participant=v1.Participant(participant_id="a", display_name="Alice", role=v1.PARTICIPANT_ROLE_OWNER)
                )
            ),
            "Alice is here (owner)",
        ),
        (v1.Event(participant_left=v1.ParticipantLeft(participant_id="a")), "a left"),
        (v1.Event(turn_started=v1.TurnStarted(agent="billing", attempt=1)), "billing answers"),
    ],
    ids=lambda value: value.WhichOneof("kind") if isinstance(value, v1.Event) else "",
)
def test_other_events(event: v1.Event, shown: str) -> None:
    assert render(event) == shown + "\n"


def test_retrying_says_when_and_why() -> None:
    retrying = v1.Retrying(
        attempt=2, max_attempts=3, error=v1.Error(reason=v1.ERROR_REASON_MODEL_UNAVAILABLE, message="busy")
    )
    retrying.delay.FromMilliseconds(1500)
    assert render(v1.Event(retrying=retrying)) == "! attempt 2 of 3 in 1.5 s: MODEL_UNAVAILABLE: busy\n"


def test_events_without_news_and_unknown_ones_write_nothing() -> None:
    assert render(v1.Event(session_created=v1.SessionCreated()), v1.Event(step_start=v1.StepStart()), v1.Event()) == ""


def permission(**rest: object) -> v1.Event:
    request = v1.InputRequest(
        kind=v1.INPUT_KIND_TOOL_PERMISSION,
        title="Allow Bash?",
        tool_name="Bash",
        tool_input='{"command": "rm\\u001b[2K x"}',
    )
    return v1.Event(input_required=v1.InputRequired(input_request=request))


def test_an_input_request_shows_the_exact_input() -> None:
    assert render(permission()).splitlines() == ["? Allow Bash?", "Bash {", '  "command": "rm\\u001b[2K x"', "}"]


def test_an_input_request_is_left_to_who_asks() -> None:
    assert render(permission(), asks=True) == ""


@pytest.mark.parametrize(
    ("response", "shown"),
    [
        (v1.InputResponse(allow=v1.Allow(scope=v1.ALLOW_SCOPE_ONCE)), "allowed once by bob"),
        (v1.InputResponse(allow=v1.Allow(scope=v1.ALLOW_SCOPE_SESSION)), "allowed for the session by bob"),
        (v1.InputResponse(allow=v1.Allow(updated_input='{"a":1}')), 'allowed once, with {"a":1} by bob'),
        (v1.InputResponse(deny=v1.Deny(message="no")), "denied: no by bob"),
        (v1.InputResponse(answers=v1.Answers()), "answered by bob"),
    ],
)
def test_resolutions(response: v1.InputResponse, shown: str) -> None:
    resolved = v1.InputResolved(state=v1.INPUT_STATE_ANSWERED, response=response, responder="bob")
    assert render(v1.Event(input_resolved=resolved)) == f"  {shown}\n"


def test_what_a_model_says_is_made_harmless() -> None:
    shown = render(
        text("\x1b[2Jtext\r"),
        tool("\x1b]0;x\x07Bash", '{"command": "\\u001b[1A"}'),
        result("\x1b[31mred"),
        message("\x1b[2K", name="\x1b[1mAlice"),
        finished(v1.TURN_STATE_FAILED, error=v1.Error(message="\x9b2J")),
    )
    assert not any(ord(c) < 0x20 and c != "\n" for c in shown)
    assert "\x9b" not in shown


def test_usage_without_a_cost() -> None:
    assert usage_line(v1.Usage(input_tokens=5, output_tokens=1)) == "5 in · 1 out"
    assert usage_line(v1.Usage(cost_usd_micros=0)) == "0 in · 0 out · $0.0000"


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def _on_terminal(monkeypatch: pytest.MonkeyPatch, no_color: str) -> str:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    file = _Tty()
    Renderer(make_console(file)).line("said", "red")
    return file.getvalue()


def test_colours_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[31m" in _on_terminal(monkeypatch, "")


def test_no_color_means_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _on_terminal(monkeypatch, "1") == "said\n"
