"""Sessions, participants, agents and the server, through kartactl."""

import json
from typing import Any

import pytest
from kartactl_server import Kartactl

from karta_client import __version__


def create(kartactl: Kartactl, *args: str) -> dict[str, Any]:
    session: dict[str, Any] = json.loads(kartactl("sessions", "create", *args, "-o", "json").stdout)
    return session


def test_create_finds_what_is_there(kartactl: Kartactl) -> None:
    first = create(kartactl, "--metadata", "customer=a", "--reuse", "--title", "Alice")
    again = create(kartactl, "--metadata", "customer=a", "--reuse")
    other = create(kartactl, "--metadata", "customer=a")
    assert first["session_id"] == again["session_id"] != other["session_id"]
    assert first["metadata"] == {"customer": "a"}


def test_list_filters_and_limits(kartactl: Kartactl) -> None:
    made = [create(kartactl, "--metadata", f"n={number}", "--title", f"T{number}")["session_id"] for number in range(3)]

    def listed(*args: str) -> list[str]:
        done = kartactl("sessions", "list", *args, "-o", "jsonl")
        return [json.loads(line)["session_id"] for line in done.stdout.splitlines()]

    assert listed() == made[::-1]
    assert listed("--limit", "2") == made[:0:-1]
    assert listed("--metadata", "n=1") == [made[1]]
    assert listed("--query", "t2") == [made[2]]
    assert listed("--metadata", "n=9") == []
    assert kartactl("sessions", "list", "--metadata", "n=9").stdout.startswith("SESSION ")
    assert made[0] in kartactl("sessions", "list").stdout


def test_update_keeps_what_is_not_named(kartactl: Kartactl) -> None:
    session = create(kartactl, "--metadata", "a=1", "--metadata", "b=2", "--title", "old")["session_id"]
    kartactl("sessions", "update", session, "--metadata", "c=3", "--unset", "a", "--title", "new")
    changed = json.loads(kartactl("sessions", "get", session, "-o", "json").stdout)
    assert changed["metadata"] == {"b": "2", "c": "3"}
    assert changed["title"] == "new"
    assert "b=2 c=3" in kartactl("sessions", "get", session).stdout


def test_handoff(kartactl: Kartactl) -> None:
    session = create(kartactl)["session_id"]
    kartactl("sessions", "handoff", session, "billing")
    assert kartactl("send", "hi", "--session", session).stdout == "billing: echo[1]: hi\n"
    kartactl("sessions", "handoff", session, "")
    assert kartactl("send", "hi", "--session", session).stdout == "echo[2]: hi\n"
    unknown = kartactl("sessions", "handoff", session, "nobody", code=4)
    assert "billing" in unknown.stderr


def test_archive_and_delete(kartactl: Kartactl) -> None:
    session = create(kartactl)["session_id"]
    kartactl("sessions", "archive", session)
    assert kartactl("send", "hi", "--session", session, code=5).stderr.startswith("kartactl: SESSION_ARCHIVED: ")
    assert session in kartactl("sessions", "list", "--state", "archived").stdout
    kartactl("sessions", "archive", session, "--undo")
    kartactl("send", "hi", "--session", session)
    kartactl("sessions", "delete", session, "--yes")
    assert kartactl("sessions", "get", session, code=4).stderr.startswith("kartactl: SESSION_NOT_FOUND: ")


def test_participants(kartactl: Kartactl) -> None:
    session = create(kartactl)["session_id"]
    kartactl("sessions", "participants", "add", session, "alice", "--name", "Alice Chen", "--role", "owner")
    kartactl("sessions", "participants", "add", session, "eve", "--role", "observer")
    assert "alice        Alice Chen  human  owner" in kartactl("sessions", "participants", "list", session).stdout
    answer = kartactl("send", "hi", "--session", session, "--participant", "alice").stdout
    assert answer == "echo[1]: Alice Chen: hi\n"
    refused = kartactl("send", "hi", "--session", session, "--participant", "eve", code=5)
    assert refused.stderr.startswith("kartactl: PARTICIPANT_IS_OBSERVER: ")
    kartactl("send", "hi", "--session", session, "--participant", "bob", code=4)
    kartactl("sessions", "participants", "remove", session, "eve")
    left = json.loads(kartactl("sessions", "participants", "list", session, "-o", "json").stdout)["participants"]
    assert [participant["participant_id"] for participant in left] == ["alice"]


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["send", "hi", "--agent", "nobody"], 4, "AGENT_NOT_FOUND"),
        (["send", ""], 5, "FIELD_REQUIRED"),
        (["sessions", "get", "nonsense"], 5, "FIELD_INVALID"),
        (["agents", "get", "nobody"], 4, "AGENT_NOT_FOUND"),
        (["agents", "list", "--harness", "nobody"], 4, "HARNESS_NOT_FOUND"),
        (["sessions", "create", "--metadata", "a=" + "x" * 5000], 5, "FIELD_TOO_LARGE"),
        (["server", "info", "--target", "nonsense"], 5, "FIELD_INVALID"),
        (["server", "info", "--target", "127.0.0.1:1"], 6, "UNAVAILABLE"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_errors(kartactl: Kartactl, args: list[str], code: int, reason: str) -> None:
    text = kartactl(*args, code=code)
    assert text.stdout == ""
    assert text.stderr.startswith(f"kartactl: {reason}: ")
    assert text.stderr.count("\n") == 1
    error = json.loads(kartactl(*args, "--output", "json", code=code).stderr)["error"]
    assert error["reason"] == reason


def test_a_session_without_turns(kartactl: Kartactl) -> None:
    session = create(kartactl)["session_id"]
    assert kartactl("turns", "get", session, code=4).stderr.startswith("kartactl: TURN_NOT_FOUND: ")


def test_agents_harnesses_and_the_server(kartactl: Kartactl) -> None:
    assert kartactl("agents", "list").stdout.splitlines()[1].split() == ["billing", "Bills"]
    assert "description  Bills" in kartactl("agents", "get", "billing").stdout
    harnesses = json.loads(kartactl("harnesses", "list", "-o", "json").stdout)["harnesses"]
    assert {"scripted", "claude_code"} <= {harness["name"] for harness in harnesses}
    assert "scripted" in kartactl("harnesses", "list").stdout
    info = json.loads(kartactl("server", "info", "-o", "json").stdout)
    assert (info["version"], info["default_harness"]) == (__version__, "scripted")
    assert "max message bytes" in kartactl("server", "info").stdout
