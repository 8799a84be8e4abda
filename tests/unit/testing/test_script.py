import json

import pytest

from karta_server.testing.script import find_script


def test_text_without_a_script_has_none() -> None:
    assert find_script("SCRIPT: is a word that people use") is None


def test_finds_the_blocks_of_each_call() -> None:
    script = [[{"think": "hm"}, {"tool": "Bash", "input": {"command": "date"}}], [{"text": "END of it", "pace": 0.5}]]

    assert find_script(f"please do\nSCRIPT:{json.dumps(script)}END thanks") == script


def test_the_last_script_wins() -> None:
    assert find_script('SCRIPT:[[{"text":"a"}]]END\nSCRIPT:[[{"text":"b"}]]END') == [[{"text": "b"}]]


def test_a_script_inside_a_script_is_for_the_subagent() -> None:
    inner = 'SCRIPT:[[{"text":"inner"}]]END'
    script = [[{"tool": "Agent", "input": {"prompt": inner}}], [{"text": "outer"}]]

    assert find_script(f"SCRIPT:{json.dumps(script)}END") == script


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SCRIPT:[[{]]END", "not valid JSON"),
        ("SCRIPT:[[]]", "not followed by END"),
        ("SCRIPT:[{}]END", "element 0 of the script is not a list"),
        ("SCRIPT:[[1]]END", "not an object"),
        ("SCRIPT:[[{}]]END", "exactly one of"),
        ('SCRIPT:[[{"text":"a","tool":"b"}]]END', "exactly one of"),
        ('SCRIPT:[[{"text":1}]]END', "cannot be 1"),
        ('SCRIPT:[[],[{"text":"a","speed":1}]]END', "element 1 of the script: 'text' has no option 'speed'"),
        ('SCRIPT:[[{"error":200}]]END', "must be 400 to 599"),
        ('SCRIPT:[[{"delay":601}]]END', "must be 0 to 600"),
        ('SCRIPT:[[{"error":429,"times":true}]]END', "cannot be True"),
        ("SCRIPT:" + "[" * 100_000, "not valid JSON"),
    ],
)
def test_says_what_is_wrong_with_a_malformed_script(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_script(text)
