"""The README's debugging session with grpcurl: reflection is all it needs."""

import json
import subprocess
from typing import Any

import pytest
from polyglot_builds import HERE, require_built

GRPCURL = HERE.parents[1] / ".cache/go/bin/grpcurl"
SERVICES = ["AgentService", "InputService", "ServerService", "SessionService", "TurnService"]
WRITES = 'Write hello.txt SCRIPT:[[{"tool": "Write", "input": {"file_path": "hello.txt"}}], [{"text": "Done."}]]END'


@pytest.fixture(autouse=True)
def _built() -> None:
    require_built("go", GRPCURL)


def grpcurl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(GRPCURL), "-plaintext", "-max-time", "20", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)


def call(address: str, method: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages that a call answers with."""
    done = grpcurl("-d", json.dumps(request), address, f"karta.v1.{method}")
    assert done.returncode == 0, done.stderr
    decoder, answers, text = json.JSONDecoder(), [], done.stdout.strip()
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:].strip()
    return answers


def start(session_id: str, text: str) -> dict[str, Any]:
    return {"start": {"session_id": session_id, "message": {"parts": [{"text": text}]}}}


def test_an_approval_by_hand(address: str) -> None:
    listed = grpcurl(address, "list").stdout.split()
    assert [name for name in listed if name.startswith("karta.")] == [f"karta.v1.{name}" for name in SERVICES]
    described = grpcurl(address, "describe", "karta.v1.TurnService").stdout
    assert "rpc RunTurn ( .karta.v1.RunTurnRequest ) returns ( stream .karta.v1.RunTurnResponse )" in described

    (created,) = call(address, "SessionService/CreateSession", {"metadata": {"customer_id": "abc123"}})
    session_id = created["session"]["session_id"]
    (sent,) = call(address, "TurnService/SendMessage", start(session_id, WRITES))
    assert sent["turn"]["state"] == "TURN_STATE_INPUT_REQUIRED"
    (waiting,) = call(address, "InputService/ListInputRequests", {"session_id": session_id})
    (asked,) = waiting["input_requests"]
    answer = {"input_request_id": asked["input_request_id"], "response": {"allow": {}}}
    (responded,) = call(address, "InputService/RespondToInput", answer)
    assert responded["input_request"]["state"] == "INPUT_STATE_ANSWERED"

    frames = call(address, "TurnService/RunTurn", start(session_id, "Thank you"))
    assert "turn_finished" in frames[-1]["events"][-1]
    frames = call(address, "SessionService/WatchSession", {"session_id": session_id, "after_sequence": 2})
    sequences = [int(event["sequence"]) for frame in frames for event in frame["events"]]
    assert sequences == list(range(3, int(frames[-1]["latest_sequence"]) + 1))


def test_an_error_is_readable(address: str) -> None:
    request = json.dumps({"session_id": "00000000-0000-7000-8000-000000000000"})
    failed = grpcurl("-d", request, address, "karta.v1.SessionService/GetSession")
    assert failed.returncode != 0
    assert '"reason": "SESSION_NOT_FOUND"' in failed.stderr
