"""Events, input requests, participants and agents as user code meets them."""

import pytest

from karta import v1
from karta_client import Agents, Event, HumanAgent, InputRequest, InvalidArgumentError, NotFoundError
from karta_client.input import as_question, check_response
from karta_client.participant import participant_id, participant_message


def view(**kind: object) -> Event:
    return Event(v1.Event(sequence=7, turn_id="t", **kind), as_question)


@pytest.mark.parametrize(
    ("event", "kind", "text"),
    [
        (view(text=v1.TextDelta(text="hi")), "text", "hi"),
        (view(reasoning=v1.ReasoningDelta(text="hm")), "reasoning", "hm"),
        (view(message_completed=v1.MessageCompleted(text="all")), "message_completed", "all"),
        (view(tool_result=v1.ToolResult(output="out")), "tool_result", "out"),
        (view(error=v1.Error(message="bad")), "error", "bad"),
        (view(harness_notice=v1.HarnessNotice(text="note")), "harness_notice", "note"),
        (
            view(message_received=v1.MessageReceived(message=v1.Message(parts=[v1.Part(text="a"), v1.Part(text="b")]))),
            "message_received",
            "ab",
        ),
        (view(turn_started=v1.TurnStarted()), "turn_started", ""),
        (view(), "", ""),
    ],
)
def test_type_and_text(event: Event, kind: str, text: str) -> None:
    assert (event.type, event.text) == (kind, text)


def test_every_kind_of_the_contract_can_be_viewed() -> None:
    for field in v1.Event.DESCRIPTOR.oneofs_by_name["kind"].fields:
        raw = v1.Event(sequence=1)
        getattr(raw, field.name).SetInParent()
        event = Event(raw, as_question)
        assert event.type == field.name
        assert isinstance(event.text, str)
        for inner in field.message_type.fields:
            if (field.name, inner.name) != ("tool_use", "input"):
                assert getattr(event, inner.name) is not None


def test_the_kinds_fields_come_before_the_events() -> None:
    done = view(turn_finished=v1.TurnFinished(error=v1.Error(message="why")))
    assert done.error.message == "why"
    assert (done.sequence, done.turn_id) == (7, "t")
    with pytest.raises(AttributeError, match="turn_finished"):
        done.nothing  # noqa: B018 - the access is the test


def test_input_is_what_the_kind_calls_so() -> None:
    asked = view(input_required=v1.InputRequired(input_request=v1.InputRequest(input_request_id="i")))
    assert isinstance(asked.input, InputRequest)
    assert asked.input.input_request_id == "i"
    assert view(tool_use=v1.ToolUse(input="{}")).input == "{}"
    with pytest.raises(AttributeError):
        view(text=v1.TextDelta()).input  # noqa: B018 - the access is the test


def question(*texts: str) -> InputRequest[v1.InputResponse]:
    return as_question(v1.InputRequest(questions=[v1.Question(question=text) for text in texts]))


def test_allowing() -> None:
    request = question()
    assert request.allow() == v1.InputResponse(allow=v1.Allow(scope=v1.ALLOW_SCOPE_ONCE))
    assert request.allow(scope="session").allow.scope == v1.ALLOW_SCOPE_SESSION
    assert request.allow(updated_input={"a": 1}).allow.updated_input == '{"a": 1}'
    assert request.allow(updated_input='{"b":2}').allow.updated_input == '{"b":2}'
    assert not request.allow().allow.HasField("updated_input")
    with pytest.raises(InvalidArgumentError, match="once"):
        request.allow(scope="forever")  # type: ignore[arg-type]


def test_denying() -> None:
    assert question().deny("no", interrupt=True) == v1.InputResponse(deny=v1.Deny(message="no", interrupt=True))


def test_answering() -> None:
    answers = question("A?", "B?").answer({"A?": "x", "B?": ["y", "z"]}).answers.by_question
    assert {key: list(value.labels) for key, value in answers.items()} == {"A?": ["x"], "B?": ["y", "z"]}
    assert list(question("A?").answer("x").answers.by_question["A?"].labels) == ["x"]
    with pytest.raises(InvalidArgumentError, match="2 questions"):
        question("A?", "B?").answer("x")


@pytest.mark.parametrize("returned", [None, True, "allow"])
def test_a_callback_must_answer(returned: object) -> None:
    with pytest.raises(TypeError, match="on_input must return"):
        check_response(returned)


def test_participants() -> None:
    alice = HumanAgent(name="alice", display_name="Alice Chen", role="owner")
    message = participant_message(alice)
    assert message == v1.Participant(
        participant_id="alice",
        display_name="Alice Chen",
        kind=v1.PARTICIPANT_KIND_HUMAN,
        role=v1.PARTICIPANT_ROLE_OWNER,
    )
    assert [participant_id(item) for item in (alice, message, "bob", None)] == ["alice", "alice", "bob", ""]


def test_an_unknown_agent_names_the_known() -> None:
    agents = Agents([v1.Agent(name="a"), v1.Agent(name="b")])
    assert agents["a"].name == "a"
    assert "c" not in agents
    assert agents.get("c") is None
    with pytest.raises(NotFoundError, match="known: a, b") as caught:
        agents["c"]
    assert (caught.value.reason, caught.value.metadata["known"]) == ("AGENT_NOT_FOUND", "a,b")
