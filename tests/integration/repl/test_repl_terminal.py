"""The REPL of `karta-runtime dev` at a real terminal."""

from pathlib import Path

import pytest
from terminal_program import CTRL_C, CTRL_D, ENTER, Start, TerminalProgram, write_agent

ASKS = 'SCRIPT:[[{"tool":"Bash","input":{"command":"x"}}],[{"text":"done"}]]END'
QUESTION = (
    'SCRIPT:[[{"tool":"AskUserQuestion","input":{"questions":[{"question":"Which colour?",'
    '"options":[{"label":"red","description":"r"},{"label":"blue","description":"b"}]}]}}],[{"text":"done"}]]END'
)
SLOW = 'SCRIPT:[[{"text":"begun"},{"delay":600}],[{"text":"never"}]]END'


def say(repl: TerminalProgram, line: str) -> None:
    repl.type(line + ENTER)


def test_a_conversation_that_is_found_again(repl: TerminalProgram, start: Start) -> None:
    say(repl, "hello")
    repl.expect("echo[1]: hello\n")
    repl.expect("1 in · 2 out")
    repl.expect(">")
    repl.type(CTRL_D)
    assert repl.end() == 0
    again = start("karta_server.cli", "dev")
    again.expect("going on after")
    again.expect(">")
    say(again, "and now")
    again.expect("echo[2]: and now\n")
    again.expect(">")
    say(again, "/new")
    again.expect("(new)")
    again.expect(">")
    say(again, "fresh")
    again.expect("echo[1]: fresh\n")
    again.expect(">")
    say(again, "/quit")
    assert again.end() == 0


def test_approvals_at_the_terminal(repl: TerminalProgram) -> None:
    say(repl, ASKS)
    assert '  "command": "x"' in repl.expect("n deny]")
    say(repl, "y")
    repl.expect("allowed once")
    repl.expect("done\n")
    repl.expect(">")
    say(repl, ASKS)
    repl.expect("n deny]")
    say(repl, "n use staging")
    repl.expect("failed: use staging")
    repl.expect(">")
    say(repl, ASKS)
    repl.expect("n deny]")
    say(repl, "e")
    repl.expect('Input as JSON: {"command": "x"}')
    repl.type("\x7f" * 3 + 'y"}' + ENTER)
    repl.expect('allowed once, with {"command": "y"}')
    repl.expect(">")
    say(repl, ASKS)
    repl.expect("n deny]")
    say(repl, "s")
    repl.expect("allowed for the session")
    repl.expect(">")
    say(repl, ASKS)
    assert "Allow" not in repl.expect("done\n").replace(ASKS, "")


def test_what_was_typed_before_a_question_does_not_answer_it(repl: TerminalProgram) -> None:
    repl.type(ASKS + ENTER + "y" + ENTER)
    repl.expect("n deny]")
    say(repl, "n no")
    repl.expect("failed: no")


def test_questions_at_the_terminal(repl: TerminalProgram) -> None:
    say(repl, QUESTION)
    repl.expect("  2 blue - b")
    repl.expect("Answer (a number, or your own words):")
    say(repl, "2")
    repl.expect('{"Which colour?": ["blue"]}')
    repl.expect("done\n")


def test_ctrl_c_cancels_the_turn_and_twice_at_the_prompt_leaves(repl: TerminalProgram) -> None:
    say(repl, SLOW)
    repl.expect("\nbegun")
    repl.type(CTRL_C)
    repl.expect("cancelling the turn")
    repl.expect("cancelled")
    repl.expect(">")
    say(repl, "still here")
    repl.expect("echo[2]: still here\n")
    repl.expect(">")
    repl.type(CTRL_C)
    repl.expect("Ctrl-C again, or /quit, to leave")
    repl.expect(">")
    repl.type(CTRL_C)
    assert repl.end() == 0


def test_ctrl_c_at_an_approval_cancels_the_turn(repl: TerminalProgram) -> None:
    say(repl, ASKS)
    repl.expect("n deny]")
    repl.type(CTRL_C)
    repl.expect("cancelled")
    repl.expect(">")
    say(repl, "hello")
    repl.expect("echo[2]: hello\n")


def test_an_approval_that_somebody_else_answers(repl: TerminalProgram, start: Start) -> None:
    say(repl, ASKS)
    repl.expect("n deny]")
    other = start("karta_client.cli", "inputs", "list", "--output", "jsonl")
    other.expect('"input_request_id":"')
    input_request_id = other.expect('"').removesuffix('"')
    other.end()
    assert start("karta_client.cli", "inputs", "respond", input_request_id, "--allow").end() == 0
    repl.expect("allowed once")
    repl.expect("done\n")
    repl.expect(">")
    say(repl, "hello")
    repl.expect("echo[2]: hello\n")


def test_others_are_heard_while_one_types(repl: TerminalProgram, start: Start) -> None:
    say(repl, "/session")
    repl.expect("this is session ")
    session = repl.expect("\n").strip()
    repl.expect(">")
    repl.type("half a line")
    assert start("karta_client.cli", "sessions", "participants", "add", session, "al", "--name", "Al Chen").end() == 0
    repl.expect("Al Chen is here (member)")
    assert start("karta_client.cli", "send", "hi there", "--session", session, "--participant", "al").end() == 0
    repl.expect("Al Chen: hi there")
    repl.expect("echo[1]: Al Chen: hi there")
    repl.type(ENTER)
    repl.expect("echo[2]: half a line\n")


def test_agents_are_reloaded_while_it_runs(repl: TerminalProgram, agents: Path) -> None:
    say(repl, "remember")
    repl.expect("echo[1]: remember\n")
    repl.expect(">")
    write_agent(agents, "support", "Helps")
    repl.expect("agent support added")
    say(repl, "/agents")
    repl.expect("support  Helps")
    say(repl, "/agent support")
    repl.expect("handoff from the default agent to support")
    repl.expect("support>")
    say(repl, "who")
    repl.expect("support: echo[2]: who\n")
    write_agent(agents, "support", "Helps more")
    repl.expect("agent support changed: the next turn uses it")
    (agents / "support.md").unlink()
    repl.expect("agent support removed")
    repl.expect("agent support is gone: the default agent answers from here on")
    repl.expect("handoff from support to the default agent")
    repl.expect(">")
    say(repl, "and now")
    assert "support" not in repl.expect("echo[3]: and now\n")


def test_a_folder_of_agents_that_is_made_later(repl: TerminalProgram, project: Path) -> None:
    (project / "CLAUDE.md").write_text("Be brief.\n")
    repl.expect("CLAUDE.md changed")
    (project / "karta.jsonc").write_text('{"harness": {"name": "scripted"}}')
    repl.expect("karta.jsonc changed")


def test_commands_are_completed_and_remembered(repl: TerminalProgram, project: Path) -> None:
    repl.type("/agent b")
    repl.expect("billing")
    repl.type("\t")
    repl.expect("illing")
    repl.type(ENTER)
    repl.expect("handoff from the default agent to billing")
    repl.expect("billing>")
    assert "+/agent billing\n" in (project / ".karta" / "repl_history").read_text()
    say(repl, "/nonsense")
    repl.expect("/nonsense is not a command")
    say(repl, "/agent nobody")
    repl.expect("AGENT_NOT_FOUND: ")
    say(repl, "/usage")
    repl.expect("0 in · 0 out")


@pytest.mark.parametrize("what", ["colour", "title"])
def test_a_model_cannot_repaint_the_terminal(repl: TerminalProgram, what: str) -> None:
    sequence = {"colour": "\\u001b[2J\\u001b[1;1Hsafe", "title": "\\u001b]0;owned\\u0007"}[what]
    say(repl, f'SCRIPT:[[{{"tool":"Bash","input":{{"command":"rm {sequence}"}}}}],[{{"text":"done {sequence}"}}]]END')
    assert f'"command": "rm {sequence}"' in repl.expect("n deny]").split("Bash {")[-1]
    say(repl, "y")
    repl.expect("done")
    repl.expect(">")
    assert b"\x1b[2J" not in repl.raw
    assert b"\x1b]0;owned" not in repl.raw
