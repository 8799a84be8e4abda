"""What models and tools say must only be shown by a terminal, never obeyed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karta_client.cleaning import clean, visible
from karta_client.terminal import exact_input, short_input, shorten

ATTACKS = {
    "colour": ("\x1b[31mred\x1b[0m", "red"),
    "erase the line above": ("rm -rf /\x1b[1A\x1b[2K", "rm -rf /"),
    "title": ("\x1b]0;owned\x07text", "text"),
    "clipboard": ("\x1b]52;c;ZXZpbA==\x1b\\text", "text"),
    "link": ("\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\", "click"),
    "device control": ("\x1bPpayload\x1b\\text", "text"),
    "eight-bit CSI": ("\x9b31mred", "red"),
    "eight-bit OSC": ("\x9d0;owned\x9ctext", "text"),
    "carriage return": ("rm -rf /\rls", "rm -rf /\nls"),
    "backspace": ("evil\x08\x08\x08\x08good", "evilgood"),
    "reordering": ("user\u202etxt.exe", "usertxt.exe"),
    "isolates": ("a\u2066b\u2069", "ab"),
    "charset": ("\x1b(0text", "text"),
    "bell and null": ("a\x07b\x00c", "abc"),
}


@pytest.mark.parametrize(("attack", "shown"), ATTACKS.values(), ids=ATTACKS)
def test_control_sequences_do_not_reach_the_terminal(attack: str, shown: str) -> None:
    assert clean(attack) == shown


def test_a_sequence_cut_in_two_is_harmless_in_both_halves() -> None:
    whole = "\x1b]52;c;ZXZpbA==\x07"
    for cut in range(len(whole)):
        assert "\x1b" not in clean(whole[:cut]) + clean(whole[cut:])


def test_text_stays_as_it_is() -> None:
    text = "Ünïcödé 漢字 👩‍👩‍👧\n\tindented [31m not a sequence"
    assert clean(text) == text


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    for shown in (clean(text), visible(text), shorten(text, 40), exact_input(text)):
        assert not any(ord(c) < 0x20 and c not in "\n\t" for c in shown)
        assert not any(0x7F <= ord(c) <= 0x9F or 0x202A <= ord(c) <= 0x202E for c in shown)


def test_an_approval_shows_what_is_hidden() -> None:
    assert visible("ls\u200b\u202e\x1b[2K") == "ls\\u200b\\u202e\\u001b[2K"
    assert exact_input('{"command": "rm -rf /\\u001b[2K\u200b"}') == '{\n  "command": "rm -rf /\\u001b[2K\\u200b"\n}'


def test_an_approval_never_resolves_a_key_that_comes_twice() -> None:
    twice = '{"command": "ls", "command": "rm -rf /"}'
    assert exact_input(twice) == twice


def test_an_approval_shows_input_that_is_no_json() -> None:
    assert exact_input('{"command": "cut o') == '{"command": "cut o'


def test_nothing_is_left_out_of_an_approval() -> None:
    command = "echo safe; " + " " * 5000 + "rm -rf /"
    assert command in exact_input(f'{{"command": "{command}"}}')


def test_a_short_input_is_one_line() -> None:
    assert short_input('{"command": "ls\\n-la"}', 40) == "ls -la"
    assert short_input('{"path": "a", "limit": 3}', 40) == "path=a limit=3"
    assert short_input("not json", 40) == "not json"
    assert len(short_input('{"content": "' + "x" * 9000 + '"}', 40)) == 40
