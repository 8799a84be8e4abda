import json
from typing import Any

from claude_harness import Claude, every, finished, run, said

from karta import v1


def request(claude: Claude) -> tuple[str, str, set[str]]:
    """Model, system prompt and tools of the last model call."""
    last: dict[str, Any] = claude.model.requests[-1]
    prompt = "\n".join(block["text"] for block in last["system"])
    return last["model"], prompt, {tool["name"] for tool in last["tools"]}


async def test_a_turn_runs_as_the_agent_that_it_names(claude: Claude) -> None:
    claude.agent("billing", "You are BILLING.", model="haiku", tools="Read, Grep")
    session = await claude.open()

    events = await run(session, "who are you", "billing")

    model, prompt, tools = request(claude)
    assert "haiku" in model
    assert "You are BILLING." in prompt
    assert {"Read", "Grep"} <= tools
    assert "Bash" not in tools
    assert {event.actor for event in events if event.source == v1.EVENT_SOURCE_AGENT} == {"billing"}


async def test_an_edited_agent_answers_the_next_turn_of_the_same_conversation(claude: Claude) -> None:
    claude.agent("billing", "You are BILLING.", model="haiku", tools="Read")
    session = await claude.open()
    await run(session, "one", "billing")
    pid = claude.program_pid()
    await run(session, "two", "billing")
    assert claude.program_pid() == pid, "nothing changed, so the process is kept"

    claude.agent("billing", "You are BILLING, edited.", model="sonnet", tools="Read, Grep")
    assert said(await run(session, "three", "billing")) == "echo[3]: three"
    model, prompt, tools = request(claude)
    assert ("sonnet" in model, "You are BILLING, edited." in prompt, "Grep" in tools) == (True, True, True)

    (claude.project / "CLAUDE.md").write_text("The project's word is PLATYPUS.")
    assert said(await run(session, "four", "billing")) == "echo[4]: four"
    assert "PLATYPUS" in json.dumps(claude.model.requests[-1])


async def test_a_handoff_changes_prompt_model_and_tools_and_keeps_the_conversation(claude: Claude) -> None:
    claude.agent("billing", "You are BILLING.", model="haiku", tools="Read, Grep")
    claude.agent("support", "You are SUPPORT.", tools="Read, Bash")
    session = await claude.open()

    assert said(await run(session, "one")) == "echo[1]: one"
    first_model, first_prompt, first_tools = request(claude)
    assert said(await run(session, "two", "billing")) == "echo[2]: two"
    model, prompt, tools = request(claude)
    assert ("haiku" in model, "You are BILLING." in prompt, "Bash" in tools) == (True, True, False)

    assert said(await run(session, "three", "support")) == "echo[3]: three"
    model, prompt, tools = request(claude)
    assert (model, "You are SUPPORT." in prompt, "BILLING" in prompt) == (first_model, True, False)
    assert "Bash" in tools
    assert "Grep" not in tools

    # Back to no agent at all: the very request of the beginning.
    assert said(await run(session, "four")) == "echo[4]: four"
    assert request(claude) == (first_model, first_prompt, first_tools)
    assert said(await run(session, "five")) == "echo[5]: five"
    await session.close()

    again = await claude.open(session.memory)
    assert said(await run(again, "six")) == "echo[6]: six"
    assert request(claude) == (first_model, first_prompt, first_tools)
    assert said(await run(again, "seven", "billing")) == "echo[7]: seven"
    model, prompt, tools = request(claude)
    assert ("haiku" in model, "You are BILLING." in prompt, "Bash" in tools) == (True, True, False)


async def test_an_unknown_agent_fails_the_turn_instead_of_answering_as_another(claude: Claude) -> None:
    claude.agent("billing", "You are BILLING.")
    session = await claude.open()

    events = await run(session, "hello", "biling")

    end = finished(events)
    assert (end.state, end.error.reason, end.error.code) == (
        v1.TURN_STATE_FAILED,
        v1.ERROR_REASON_AGENT_NOT_FOUND,
        5,
    )
    assert "billing" in end.error.metadata["known"].split(",")
    assert list(claude.model.requests) == []
    assert said(await run(session, "hello", "billing")) == "echo[1]: hello"


async def test_lists_what_claude_code_itself_knows(claude: Claude) -> None:
    claude.agent("billing", "You are BILLING.", model="haiku", tools="Read, Grep")
    folder = claude.project / ".claude" / "agents"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "inner.md").write_text("---\nname: inner\ndescription: deep\nmodel: inherit\n---\nINNER")
    (folder / "colon.md").write_text("---\nname: colon\ndescription: Use this: when <example>a: b</example>\n---\nC")
    (folder / "nameless.md").write_text("---\ndescription: has no name\n---\nbody")
    (folder / "README.md").write_text("just text")
    own = claude.home / ".claude" / "agents"
    own.mkdir(parents=True)
    (own / "mine.md").write_text("---\nname: mine\ndescription: the user's\n---\nMINE")
    (own / "billing.md").write_text("---\nname: billing\ndescription: not this one\n---\nOTHER")

    agents = {agent.name: agent for agent in await claude.adapter().agents()}

    assert list(agents) == ["billing", "colon", "inner", "mine"]
    session = await claude.open()
    for name in agents:
        assert finished(await run(session, "hi", name)).state == v1.TURN_STATE_COMPLETED
    assert agents["billing"].description == "the billing"
    assert (agents["billing"].model, list(agents["billing"].tools)) == ("haiku", ["Read", "Grep"])
    assert agents["billing"].path == ".claude/agents/billing.md"
    assert json.loads(agents["billing"].frontmatter)["tools"] == "Read, Grep"
    assert agents["inner"].model == ""
    assert agents["mine"].path == ""
    assert {agent.harness for agent in agents.values()} == {"claude_code"}
    assert every(await run(session, "bye"), "error") == []
