import asyncio
import json
import re
import sys
import uuid

import pytest
from claude_harness import Claude, allow, answering, bash, every, finished, kinds, only, run, said, script

from karta import v1
from karta_server.harness.claude_code import ClaudeCodeAdapter
from karta_server.harness.contract import HarnessSession, Prompt


async def test_streams_a_turn(claude: Claude) -> None:
    session = await claude.open()
    text = "an answer that takes more than one delta"

    events = await run(session, script([{"think": "hm, let me see"}, {"text": text}]))

    assert kinds(events) == ["step_start", "reasoning", "text", "step_finish", "message_completed", "turn_finished"]
    assert len(every(events, "text")) > 1
    assert said(events) == text
    assert "".join(delta.text for delta in every(events, "reasoning")) == "hm, let me see"
    assert only(events, "step_start").model.startswith("claude-")
    assert only(events, "message_completed").text == text
    end = finished(events)
    assert end.state == v1.TURN_STATE_COMPLETED
    step = only(events, "step_finish")
    assert step.reason == "end_turn"
    assert step.usage.output_tokens == (len("hm, let me see") + len(text)) // 4
    assert (step.usage.cache_read_tokens, step.usage.cache_write_tokens) == (11, 7)
    assert end.usage.cost_usd_micros > 0
    step.usage.cost_usd_micros = end.usage.cost_usd_micros
    assert end.usage == step.usage
    parts = {event.WhichOneof("kind"): event.part_id for event in events if event.part_id}
    assert len(set(parts.values())) == 2
    assert {event.step for event in events if event.WhichOneof("kind") in ("text", "step_finish")} == {1}


async def test_runs_tools_and_counts_steps(claude: Claude) -> None:
    session = await claude.open()

    events = await run(session, script([{"text": "look"}, bash("echo out"), bash("cat nowhere")], [{"text": "done"}]))

    assert every(events, "input_required") == []
    calls, results = every(events, "tool_use"), every(events, "tool_result")
    assert [(call.name, json.loads(call.input)) for call in calls] == [
        ("Bash", {"command": "echo out"}),
        ("Bash", {"command": "cat nowhere"}),
    ]
    # They run side by side, and end in any order.
    ended = {result.tool_use_id: result for result in results}
    good, bad = (ended[call.tool_use_id] for call in calls)
    assert (good.outcome, good.output) == (v1.TOOL_OUTCOME_DONE, "out")
    assert bad.outcome == v1.TOOL_OUTCOME_FAILED
    assert "nowhere" in bad.output
    assert [event.step for event in events if event.HasField("step_finish")] == [1, 2]
    assert [step.reason for step in every(events, "step_finish")] == ["tool_use", "end_turn"]
    assert only(events, "message_completed").text == "done"
    assert finished(events).usage.output_tokens == sum(s.usage.output_tokens for s in every(events, "step_finish"))


async def test_remembers_within_a_process_and_after_it(claude: Claude) -> None:
    first = await claude.open()
    assert said(await run(first, "one")) == "echo[1]: one"
    assert said(await run(first, "two")) == "echo[2]: two"
    await first.close()

    second = await claude.open(first.memory)
    assert said(await run(second, "three")) == "echo[3]: three"


async def test_charges_each_turn_for_itself(claude: Claude) -> None:
    first = await claude.open()
    costs = [finished(await run(first, text)).usage.cost_usd_micros for text in ("one", "two")]
    await first.close()
    second = await claude.open(first.memory)
    costs.append(finished(await run(second, "three")).usage.cost_usd_micros)

    assert all(cost > 0 for cost in costs)
    # The conversation's total would be at least twice as much as the dearest of three alike turns.
    assert max(costs) < 2 * min(costs)
    assert json.loads(second.memory)["cost_usd_micros"] == sum(costs)


async def test_sessions_run_in_parallel(claude: Claude) -> None:
    async def converse(name: str) -> list[str]:
        session = await claude.open()
        return [said(await run(session, f"{name} {number}")) for number in (1, 2)]

    names = ["a", "b", "c"]
    assert await asyncio.gather(*map(converse, names)) == [[f"echo[{n}]: {name} {n}" for n in (1, 2)] for name in names]


async def test_tells_what_subagents_do(claude: Claude) -> None:
    claude.agent("helper", "You help.")
    session = await claude.open()
    job = script([{"text": "helping"}, bash("touch made")], [{"text": "helped"}])
    call = {"subagent_type": "helper", "description": "help", "prompt": job, "run_in_background": False}

    events = await run(
        session, script([{"tool": "Agent", "input": call}], [{"text": "thanks"}]), "", answering(session, allow())
    )

    assert (claude.project / "made").exists()
    launch = every(events, "tool_use")[0]
    below = [event for event in events if event.parent_tool_use_id == launch.tool_use_id]
    assert kinds(below) == ["text", "tool_use", "tool_result", "text"]
    assert {event.actor for event in below if not event.HasField("tool_result")} == {"helper"}
    assert [event.text.text for event in below if event.HasField("text")] == ["helping", "helped"]
    assert only(events, "message_completed").text == "thanks"
    assert finished(events).state == v1.TURN_STATE_COMPLETED


async def test_the_servers_environment_stays_with_the_server(claude: Claude, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_SERVER", "leaked")
    monkeypatch.setenv("HTTPS_PROXY", "http://leaked")
    session = await claude.open()

    events = await run(session, script([bash("env")], [{"text": "done"}]), "", answering(session, allow()))

    output = only(events, "tool_result").output
    assert f"HOME={claude.home}" in output
    assert "leaked" not in output
    of_program = claude.program_environment()
    assert "ANTHROPIC_API_KEY=offline-dummy" in of_program
    assert "leaked" not in of_program


async def test_leaving_a_turn_early_ends_its_process(claude: Claude) -> None:
    session = await claude.open()
    turn = session.run_turn(Prompt(str(uuid.uuid4()), script([{"text": "x" * 600, "pace": 0.2}]), ""))
    async for event in turn:
        if event.HasField("text"):
            break
    await turn.aclose()

    assert claude.processes() == {}


async def test_a_local_command_is_a_turn_without_a_model_call(claude: Claude) -> None:
    session = await claude.open()

    events = await run(session, "/context")

    assert finished(events).state == v1.TURN_STATE_COMPLETED
    assert only(events, "message_completed").text
    assert list(claude.model.requests) == []
    assert said(await run(session, "and on")).endswith("and on")


async def test_two_turns_at_once_are_refused(claude: Claude) -> None:
    session: HarnessSession = await claude.open()
    turn = session.run_turn(Prompt(str(uuid.uuid4()), "hi", ""))
    await anext(turn)
    with pytest.raises(RuntimeError):
        await run(session, "again")
    await turn.aclose()


async def test_what_goes_on_in_the_background_stays_out_of_the_next_turn(claude: Claude) -> None:
    session = await claude.open()
    job = script(
        [bash("touch begun; sleep 0.5", run_in_background=True)],
        [{"text": "started"}],
        # Claude Code wakes its model by itself when the command has ended, and nobody has asked for this.
        [{"text": "BACKGROUND " * 20, "pace": 0.1}, bash("touch unasked")],
        [{"text": "done"}],
    )
    assert said(await run(session, job, "", answering(session, allow()))) == "started"
    await claude.wait_for_requests(3)

    events = await run(session, "next")

    assert "BACKGROUND" not in said(events)
    assert every(events, "input_required") == []
    assert not (claude.project / "unasked").exists()
    assert finished(events).state == v1.TURN_STATE_COMPLETED
    assert said(await run(session, "and on")).endswith(": and on")


async def test_takes_messages_beyond_the_default_of_the_sdk(claude: Claude) -> None:
    session = await claude.open()
    large = {"tool": "Write", "input": {"file_path": str(claude.project / "large"), "content": "x" * 2_000_000}}

    events = await run(session, script([large], [{"text": "ok"}]), "", answering(session, allow()))

    assert len(only(events, "tool_use").input) > 2_000_000
    assert (claude.project / "large").stat().st_size == 2_000_000
    assert finished(events).state == v1.TURN_STATE_COMPLETED


async def test_a_cleared_conversation_stays_cleared(claude: Claude) -> None:
    session = await claude.open()
    await run(session, "one")
    assert finished(await run(session, "/clear")).state == v1.TURN_STATE_COMPLETED

    assert said(await run(session, "two")) == "echo[1]: two"
    await session.close()
    again = await claude.open(session.memory)
    assert said(await run(again, "three")) == "echo[2]: three"


async def test_describes_itself_without_importing_the_sdk(claude: Claude) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from karta_server.harness.claude_code import ClaudeCodeAdapter\n"
        "from karta_server.harness.contract import HarnessSettings\n"
        "found = asyncio.run(ClaudeCodeAdapter(HarnessSettings(Path('.'), Path('.'), {})).describe())\n"
        "assert 'claude_agent_sdk' not in sys.modules\n"
        "sys.stdout.write(f'{found.name} {found.version} {found.available}')"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()

    name, version, available = output.decode().split()
    assert (name, available) == ("claude_code", "True")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


async def test_a_chosen_program_is_asked_for_its_version(claude: Claude) -> None:
    program = claude.root / "mine"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "9.8.7 (Claude Code)"\n')
    program.chmod(0o755)

    harness = await ClaudeCodeAdapter(claude.settings(options={"cli_path": "../mine"})).describe()

    assert (harness.available, harness.version) == (True, "9.8.7")
