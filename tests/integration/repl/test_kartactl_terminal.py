"""kartactl send, stream and chat at a real terminal."""

from pathlib import Path

from terminal_program import CTRL_C, CTRL_D, ENTER, Start

ASKS = 'SCRIPT:[[{"tool":"Bash","input":{"command":"x"}}],[{"text":"done"}]]END'


def test_stream_asks_inline(start: Start) -> None:
    program = start("karta_client.cli", "stream", ASKS)
    program.expect("> Bash x")
    assert '  "command": "x"' in program.expect("n deny]")
    program.type("y" + ENTER)
    program.expect("allowed once")
    program.expect("done\n")
    assert program.end() == 0


def test_send_asks_beside_its_output(start: Start, project: Path) -> None:
    program = start("karta_client.cli", "send", ASKS, "--output", "json")
    program.expect("n deny]")
    program.type("n no" + ENTER)
    program.expect('"text": "done"')
    assert program.end() == 0


def test_ctrl_c_in_a_stream_says_what_becomes_of_the_turn(start: Start) -> None:
    program = start("karta_client.cli", "stream", 'SCRIPT:[[{"text":"begun"},{"delay":600}]]END')
    program.expect("begun")
    program.type(CTRL_C)
    program.expect("This folder's server ends when nobody uses it any more")
    assert program.end() == 130


def test_ctrl_c_at_the_question_of_a_stream(start: Start) -> None:
    program = start("karta_client.cli", "stream", ASKS)
    program.expect("n deny]")
    program.type(CTRL_C)
    program.expect("karta-runtime dev-serve")
    assert program.end() == 130


def test_chat(start: Start) -> None:
    program = start("karta_client.cli", "chat", "--metadata", "topic=tour", "--agent", "billing")
    program.expect("billing>")
    program.type("hello" + ENTER)
    program.expect("billing: echo[1]: hello\n")
    program.expect("billing>")
    program.type("/help" + ENTER)
    program.expect("/cancel")
    program.expect("billing>")
    program.type(CTRL_D)
    assert program.end() == 0
