"""Messages sent with kartactl to a real server: what is printed, and the exit codes that scripts rely on."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from kartactl_server import Kartactl, ServerProcess

ASKS = 'SCRIPT:[[{"tool":"Bash","input":{"command":"x"}}],[{"text":"done"}]]END'
TWICE = 'SCRIPT:[[{"tool":"Bash","input":{"command":"a"}},{"tool":"Write","input":{"path":"b"}}],[{"text":"done"}]]END'
QUESTION = (
    'SCRIPT:[[{"tool":"AskUserQuestion","input":{"questions":[{"question":"Which colour?",'
    '"options":[{"label":"red","description":"r"},{"label":"blue","description":"b"}]}]}}],[{"text":"done"}]]END'
)
SLOW = 'SCRIPT:[[{"text":"begun"},{"delay":600}],[{"text":"never"}]]END'


def lines(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def kind(event: dict[str, Any]) -> str:
    common = {"sequence", "session_id", "turn_id", "create_time", "source", "actor", "step", "part_id", "may_ignore"}
    (name,) = event.keys() - common
    return str(name)


def test_send_prints_the_answer_alone(kartactl: Kartactl) -> None:
    done = kartactl("send", "hello")
    assert done.stdout == "echo[1]: hello\n"
    assert done.stderr.startswith("session ")
    assert kartactl("send", "hello", "--quiet").stderr == ""


def test_send_as_json_is_the_turn(kartactl: Kartactl) -> None:
    turn = json.loads(kartactl("send", "hello", "--output", "json").stdout)
    assert turn["state"] == "TURN_STATE_COMPLETED"
    assert turn["text"] == "echo[1]: hello"
    assert turn["message"] == {"parts": [{"text": "hello"}]}


def test_a_message_from_standard_input(kartactl: Kartactl) -> None:
    assert kartactl("send", "-", stdin="from a pipe").stdout == "echo[1]: from a pipe\n"


def test_a_session_is_found_again_by_its_metadata(kartactl: Kartactl) -> None:
    kartactl("send", "one", "--metadata", "task=t1")
    assert kartactl("send", "two", "--metadata", "task=t1").stdout == "echo[2]: two\n"
    assert kartactl("send", "three", "--metadata", "task=t2").stdout == "echo[1]: three\n"


def test_an_agent_is_chosen_for_a_turn(kartactl: Kartactl) -> None:
    assert kartactl("send", "hi", "--agent", "billing").stdout == "billing: echo[1]: hi\n"


def test_stream_for_people(kartactl: Kartactl) -> None:
    done = kartactl("stream", ASKS, "--approve", "allow-once", "--quiet")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "> Bash x",
        "? Allow Bash?",
        "Bash {",
        '  "command": "x"',
        "}",
        "  allowed once by developer",
        '  Bash {"command": "x"}',
        "done",
        "2 in · 1 out",
    ]


def test_stream_and_watch_print_the_same_lines_without_a_gap(kartactl: Kartactl) -> None:
    streamed = kartactl("stream", TWICE, "--approve", "allow-once", "--output", "jsonl")
    events = lines(streamed)
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert kind(events[0]) == "session_created"
    assert kind(events[-1]) == "turn_finished"
    session = events[0]["session_id"]
    watched = kartactl("sessions", "watch", session, "--after", "0", "--output", "jsonl")
    assert watched.stdout == streamed.stdout
    again = kartactl("stream", "more", "--session", session, "--output", "jsonl")
    whole = kartactl("sessions", "watch", session, "--output", "jsonl")
    assert whole.stdout == streamed.stdout + again.stdout
    tail = kartactl("sessions", "watch", session, "--after", str(len(events)), "--output", "jsonl")
    assert tail.stdout == again.stdout


def test_watch_only_some_kinds(kartactl: Kartactl) -> None:
    kartactl("send", "hello", "--metadata", "k=v")
    session = json.loads(kartactl("sessions", "list", "-o", "json").stdout)["sessions"][0]["session_id"]
    events = lines(kartactl("sessions", "watch", session, "--kind", "turn_finished", "-o", "jsonl"))
    assert [kind(event) for event in events] == ["turn_finished"]


def test_a_denied_tool(kartactl: Kartactl) -> None:
    shown = kartactl("stream", ASKS, "--approve", "deny").stdout
    assert "denied: Denied by kartactl --approve deny." in shown
    assert "failed: Denied by kartactl" in shown


@pytest.mark.parametrize("command", ["send", "stream"])
@pytest.mark.parametrize("script", ['SCRIPT:[[{"error":429}]]END', 'SCRIPT:[[{"drop":true}]]END'])
def test_a_failed_turn(kartactl: Kartactl, command: str, script: str) -> None:
    done = kartactl(command, script, code=1)
    assert "failed: " in done.stdout + done.stderr


def _waiting(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    error = json.loads(done.stderr)["error"]
    assert error["reason"] == "INPUT_REQUIRED"
    assert f"kartactl inputs respond {error['metadata']['input_request_id']}" in error["message"]
    metadata: dict[str, str] = error["metadata"]
    return metadata


@pytest.mark.parametrize("command", ["send", "stream"])
def test_without_a_terminal_an_approval_is_left_to_others(kartactl: Kartactl, command: str) -> None:
    ids = _waiting(kartactl(command, ASKS, "--output", "json", code=3))
    assert kartactl("turns", "wait", ids["session_id"], code=3)
    assert "Allow Bash?" in kartactl("inputs", "list").stdout
    shown = kartactl("inputs", "get", ids["input_request_id"]).stdout
    assert '"command": "x"' in shown
    kartactl("inputs", "respond", ids["input_request_id"], "--allow")
    done = kartactl("turns", "wait", ids["session_id"], ids["turn_id"], "-o", "json")
    assert json.loads(done.stdout)["text"] == "done"
    assert json.loads(kartactl("inputs", "list", "-o", "json").stdout) == {"input_requests": []}
    late = kartactl("inputs", "respond", ids["input_request_id"], "--deny", code=5)
    assert late.stderr.startswith("kartactl: INPUT_ALREADY_RESOLVED: ")


def test_an_approval_for_people_says_what_to_do(kartactl: Kartactl) -> None:
    done = kartactl("stream", ASKS, code=3)
    (line,) = done.stderr.splitlines()
    assert line.startswith("kartactl: INPUT_REQUIRED: Allow Bash? - answer with: kartactl inputs respond ")
    assert "turns watch" in line
    assert "turns cancel" in line


def test_a_question_is_not_decided_by_approve(kartactl: Kartactl) -> None:
    ids = _waiting(kartactl("send", QUESTION, "--approve", "allow-once", "--output", "json", code=3))
    wrong = kartactl("inputs", "respond", ids["input_request_id"], "--answer", "9", code=2)
    assert "chooses nothing" in wrong.stderr
    kartactl("inputs", "respond", ids["input_request_id"], "--answer", "Which colour?=blue")
    kartactl("turns", "wait", ids["session_id"])
    shown = kartactl("turns", "watch", ids["session_id"]).stdout
    assert '{"Which colour?": ["blue"]}' in shown


def test_other_ways_to_respond(kartactl: Kartactl) -> None:
    ids = _waiting(kartactl("send", ASKS, "-o", "json", code=3))
    kartactl("inputs", "respond", ids["input_request_id"], "--allow", "--input", '{"command": "y"}')
    kartactl("turns", "wait", ids["session_id"])
    assert 'Bash {"command": "y"}' in kartactl("turns", "watch", ids["session_id"]).stdout
    ids = _waiting(kartactl("send", ASKS, "-o", "json", code=3))
    kartactl("inputs", "respond", ids["input_request_id"], "--deny", "not today", "--interrupt")
    kartactl("turns", "wait", ids["session_id"], code=1)
    ids = _waiting(kartactl("send", ASKS, "-o", "json", code=3))
    kartactl("inputs", "respond", ids["input_request_id"], "--allow", "--session-scope")
    kartactl("turns", "wait", ids["session_id"])
    assert kartactl("send", ASKS, "--session", ids["session_id"]).stdout == "done\n"


def test_cancel_and_wait(kartactl: Kartactl) -> None:
    ids = _waiting(kartactl("send", ASKS, "-o", "json", code=3))
    late = kartactl("turns", "watch", ids["session_id"], "nonsense", code=5)
    assert "turn_id" in late.stderr
    kartactl("turns", "cancel", ids["session_id"], "--reason", "wrong branch")
    done = kartactl("turns", "wait", ids["session_id"], ids["turn_id"], code=1)
    assert "cancelled" in done.stdout
    assert "wrong branch" in done.stdout
    kartactl("turns", "watch", ids["session_id"], ids["turn_id"], code=1)
    (turn,) = json.loads(kartactl("turns", "list", ids["session_id"], "--state", "cancelled", "-o", "json").stdout)[
        "turns"
    ]
    assert turn["turn_id"] == ids["turn_id"]


@pytest.fixture
def started(server: ServerProcess, environment: dict[str, str]) -> Callable[..., "subprocess.Popen[str]"]:
    def start(*args: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "karta_client.cli", *args],
            env=environment | {"KARTA_TARGET": server.address},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


Started = Callable[..., "subprocess.Popen[str]"]


def _until(process: "subprocess.Popen[str]", word: str) -> list[str]:
    """Read lines up to one with the word; the test's time-out is the deadline."""
    assert process.stdout
    seen = []
    for line in process.stdout:
        seen.append(line)
        if word in line:
            return seen
    raise AssertionError(f"no {word!r} in {seen}")


def test_ctrl_c_leaves_the_turn_alone(kartactl: Kartactl, started: Started) -> None:
    process = started("stream", SLOW, "--output", "jsonl")
    ids = json.loads(_until(process, '"begun"')[-1])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"kartactl turns watch {ids['session_id']} {ids['turn_id']}" in errors
    assert f"kartactl turns cancel {ids['session_id']} {ids['turn_id']}" in errors
    assert "running" in kartactl("turns", "get", ids["session_id"]).stdout
    kartactl("turns", "wait", ids["session_id"], "--timeout", "0.1", code=6)
    assert "cancelled" in kartactl("turns", "cancel", ids["session_id"]).stdout


def test_a_reader_that_goes_away_ends_it_quietly(kartactl: Kartactl, started: Started) -> None:
    process = started("stream", 'SCRIPT:[[{"text":"a b c d e f g h","pace":0.02}]]END', "--output", "jsonl")
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(20) == 141
    process.stderr.close()


def test_a_killed_server(kartactl: Kartactl, server: ServerProcess, started: Started) -> None:
    """The stream goes on with the next server, and shows that the turn is lost; nothing seen is unsaid."""
    process = started("stream", SLOW, "--output", "jsonl")
    seen = _until(process, '"begun"')
    server.end(signal.SIGKILL)
    server.start()
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    streamed = "".join(seen) + rest
    last = json.loads(streamed.splitlines()[-1])
    assert last["turn_finished"]["state"] == "TURN_STATE_INTERRUPTED"
    assert kartactl("sessions", "watch", last["session_id"], "-o", "jsonl").stdout == streamed


def test_inputs_are_watched(kartactl: Kartactl, started: Started) -> None:
    ids = _waiting(kartactl("send", ASKS, "-o", "json", code=3))
    process = started("inputs", "watch", "--output", "jsonl")
    try:
        (line,) = _until(process, ids["input_request_id"])
        assert json.loads(line)["state"] == "INPUT_STATE_PENDING"
        kartactl("inputs", "respond", ids["input_request_id"], "--deny")
        assert json.loads(_until(process, ids["input_request_id"])[-1])["state"] == "INPUT_STATE_ANSWERED"
    finally:
        process.kill()
        process.communicate()


def test_a_session_is_followed(kartactl: Kartactl, started: Started) -> None:
    session = json.loads(kartactl("sessions", "create", "-o", "json").stdout)["session_id"]
    process = started("sessions", "watch", session, "--follow")
    try:
        kartactl("sessions", "participants", "add", session, "alice", "--name", "Alice Chen")
        kartactl("send", "hello", "--session", session, "--participant", "alice")
        shown = _until(process, "echo[1]")
        assert "Alice Chen: hello\n" in shown
    finally:
        process.kill()
        process.communicate()
