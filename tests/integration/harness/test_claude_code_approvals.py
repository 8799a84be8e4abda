import json

import pytest
from claude_harness import Claude, allow, answering, bash, deny, every, finished, kinds, only, run, said, script

from karta import v1

QUESTIONS = [
    {
        "question": "Which colour?",
        "header": "Colour",
        "multiSelect": False,
        "options": [{"label": "Red", "description": "warm"}, {"label": "Blue", "description": "cold"}],
    },
    {
        "question": "Which sizes?",
        "header": "Sizes",
        "multiSelect": True,
        "options": [{"label": "S", "description": ""}, {"label": "M", "description": ""}],
    },
]


async def test_asks_with_the_exact_input_and_runs_once_allowed(claude: Claude) -> None:
    session = await claude.open()
    command = "touch 'a file' && echo \"ü\""

    events = await run(session, script([bash(command)], [{"text": "ok"}]), "", answering(session, allow()))

    request = only(events, "input_required").input_request
    assert request.kind == v1.INPUT_KIND_TOOL_PERMISSION
    assert request.tool_name == "Bash"
    assert json.loads(request.tool_input) == {"command": command}
    assert request.title
    assert list(request.options) == [
        v1.INPUT_OPTION_ALLOW_ONCE,
        v1.INPUT_OPTION_ALLOW_SESSION,
        v1.INPUT_OPTION_ALLOW_UPDATED,
        v1.INPUT_OPTION_DENY,
    ]
    assert only(events, "tool_use").tool_use_id == request.tool_use_id
    order = kinds(events)
    assert order.index("tool_use") < order.index("input_required") < order.index("tool_result")
    assert (claude.project / "a file").exists()
    assert only(events, "tool_result").output == "ü"


async def test_a_denial_reaches_the_model_with_its_message(claude: Claude) -> None:
    session = await claude.open()

    events = await run(
        session, script([bash("touch made")], [{"text": "a pity"}]), "", answering(session, deny("not today"))
    )

    result = only(events, "tool_result")
    assert result.outcome == v1.TOOL_OUTCOME_FAILED
    assert "not today" in result.output
    assert not (claude.project / "made").exists()
    assert "not today" in json.dumps(claude.model.requests[-1]["messages"])
    assert finished(events).state == v1.TURN_STATE_COMPLETED


async def test_a_denial_can_end_the_turn(claude: Claude) -> None:
    session = await claude.open()

    events = await run(
        session, script([bash("touch made")], [{"text": "never"}]), "", answering(session, deny("stop", interrupt=True))
    )

    assert finished(events).state == v1.TURN_STATE_CANCELLED
    assert every(events, "message_completed") == []
    assert every(events, "error") == []
    assert len(claude.model.requests) == 1
    assert said(await run(session, "next")).endswith(": next")


async def test_a_tool_runs_with_another_input(claude: Claude) -> None:
    session = await claude.open()
    other = json.dumps({"command": "touch other"})

    events = await run(
        session, script([bash("touch made")], [{"text": "ok"}]), "", answering(session, allow(updated_input=other))
    )

    assert finished(events).state == v1.TURN_STATE_COMPLETED
    assert (claude.project / "other").exists()
    assert not (claude.project / "made").exists()


@pytest.mark.parametrize("updated_input", ["{", "[]"])
async def test_an_answer_that_makes_no_sense_is_a_denial(claude: Claude, updated_input: str) -> None:
    session = await claude.open()

    answer = answering(session, allow(updated_input=updated_input))
    events = await run(session, script([bash("touch made")], [{"text": "ok"}]), "", answer)

    assert only(events, "tool_result").outcome == v1.TOOL_OUTCOME_FAILED
    assert not (claude.project / "made").exists()


async def test_a_permission_for_the_session_is_for_that_tool_and_that_process(claude: Claude) -> None:
    session = await claude.open()
    calls = [
        [bash("touch first")],
        [bash("touch second")],
        [{"tool": "Write", "input": {"file_path": str(claude.project / "third"), "content": "x"}}],
        [{"text": "ok"}],
    ]

    events = await run(
        session, script(*calls), "", answering(session, allow(v1.ALLOW_SCOPE_SESSION), deny("not this one"))
    )

    asked = [event.input_request.tool_name for event in every(events, "input_required")]
    assert asked == ["Bash", "Write"]
    assert (claude.project / "second").exists()
    assert not (claude.project / "third").exists()
    assert await run(session, script([bash("touch fourth")], [{"text": "ok"}]))
    assert (claude.project / "fourth").exists()
    assert list(claude.project.rglob("settings*.json")) == []
    assert not list(claude.home.rglob("settings*.json"))

    await session.close()
    again = await claude.open(session.memory)
    events = await run(again, script([bash("touch fifth")], [{"text": "ok"}]), "", answering(again, deny()))
    assert only(events, "input_required").input_request.tool_name == "Bash"


async def test_each_of_several_calls_gets_its_own_answer(claude: Claude) -> None:
    session = await claude.open()
    paths = [str(claude.project / name) for name in ("one", "two", "three")]
    calls = [{"tool": "Write", "input": {"file_path": path, "content": "x"}} for path in paths]

    events = await run(
        session, script(calls, [{"text": "ok"}]), "", answering(session, allow(), deny("not two"), allow())
    )

    asked = [event.input_request.tool_use_id for event in every(events, "input_required")]
    assert asked == [call.tool_use_id for call in every(events, "tool_use")]
    outcomes = {result.tool_use_id: result.outcome for result in every(events, "tool_result")}
    done, failed = v1.TOOL_OUTCOME_DONE, v1.TOOL_OUTCOME_FAILED
    assert [outcomes[tool_use_id] for tool_use_id in asked] == [done, failed, done]
    assert sorted(path.name for path in claude.project.iterdir()) == ["one", "three"]


async def test_subagents_wait_side_by_side_and_each_gets_its_answer(claude: Claude) -> None:
    claude.agent("helper", "You help.")
    session = await claude.open()
    waiting: list[v1.InputRequest] = []

    async def answer_backwards(event: v1.Event) -> None:
        if not event.HasField("input_required"):
            return
        waiting.append(event.input_required.input_request)
        for request in reversed(waiting) if len(waiting) == 2 else ():
            request.state = v1.INPUT_STATE_ANSWERED
            request.response.CopyFrom(deny("no") if "one" in request.tool_input else allow())
            await session.answer(request)

    jobs = [script([bash(f"touch {name}")], [{"text": "tried"}]) for name in ("one", "two")]
    calls = [
        {
            "tool": "Agent",
            "input": {"subagent_type": "helper", "description": "help", "prompt": job, "run_in_background": False},
        }
        for job in jobs
    ]
    events = await run(session, script(calls, [{"text": "ok"}]), "", answer_backwards)

    assert finished(events).state == v1.TURN_STATE_COMPLETED
    assert not (claude.project / "one").exists()
    assert (claude.project / "two").exists()


async def test_questions_are_asked_and_their_answers_reach_the_model(claude: Claude) -> None:
    session = await claude.open()
    answers = v1.Answers(
        by_question={"Which colour?": v1.Answer(labels=["Blue"]), "Which sizes?": v1.Answer(labels=["S", "M"])}
    )

    events = await run(
        session,
        script([{"tool": "AskUserQuestion", "input": {"questions": QUESTIONS}}], [{"text": "ok"}]),
        "",
        answering(session, v1.InputResponse(answers=answers)),
    )

    request = only(events, "input_required").input_request
    assert request.kind == v1.INPUT_KIND_QUESTION
    assert list(request.options) == [v1.INPUT_OPTION_ANSWER, v1.INPUT_OPTION_DENY]
    assert request.title == "Which colour?"
    first, second = request.questions
    assert (first.question, first.header, first.multi_select) == ("Which colour?", "Colour", False)
    assert [(option.label, option.description) for option in first.options] == [("Red", "warm"), ("Blue", "cold")]
    assert second.multi_select
    result = only(events, "tool_result")
    assert result.outcome == v1.TOOL_OUTCOME_DONE
    assert "Blue" in result.output
    assert "S, M" in result.output


async def test_a_question_can_be_refused(claude: Claude) -> None:
    session = await claude.open()

    events = await run(
        session,
        script([{"tool": "AskUserQuestion", "input": {"questions": QUESTIONS[:1]}}], [{"text": "ok"}]),
        "",
        answering(session, deny("decide yourself")),
    )

    result = only(events, "tool_result")
    assert result.outcome == v1.TOOL_OUTCOME_FAILED
    assert "decide yourself" in result.output
