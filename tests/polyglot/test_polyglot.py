"""The contract from other languages: clients in Go, TypeScript and Java do what a client has to do.

Each program talks to a real server and prints, as its last line, what it saw. It is compared with the log.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from polyglot_builds import HERE, require_built

from karta import v1
from karta.v1.session_service_pb2_grpc import SessionServiceStub

JAVA = HERE / "java" / "build"
PROGRAMS: dict[str, tuple[Path, list[str]]] = {
    "go": (HERE / "go/build/karta-client", [str(HERE / "go/build/karta-client")]),
    "ts": (HERE / "ts/dist/main.js", ["node", str(HERE / "ts/dist/main.js")]),
    "java": (JAVA / "lib", ["java", "-cp", f"{JAVA / 'classes'}:{JAVA / 'lib'}/*", "KartaClient"]),
}
ASKS = 'Go on. SCRIPT:[[{"tool": "Bash", "input": {"command": "date"}}], [{"text": "It is done."}]]END'
FAILS = 'Go on. SCRIPT:[[{"error": 401}]]END'
UNKNOWN = "00000000-0000-7000-8000-000000000000"


@pytest.fixture(params=PROGRAMS)
def language(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    require_built(name, PROGRAMS[name][0])
    return name


def run(language: str, address: str, prompt: str) -> "subprocess.CompletedProcess[str]":
    command = [*PROGRAMS[language][1], address, prompt]
    return subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)


def report(language: str, address: str) -> dict[str, Any]:
    done = run(language, address, ASKS)
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    saw: dict[str, Any] = json.loads(last)
    assert printed == [saw["first_text"]], "the deltas are the final message"
    return saw


def events_of(address: str, session_id: str) -> list[v1.Event]:
    with grpc.insecure_channel(address) as channel:
        frames = SessionServiceStub(channel).WatchSession(v1.WatchSessionRequest(session_id=session_id), timeout=10)
        return [event for frame in frames for event in frame.events]


def test_a_program_sees_what_the_log_has(language: str, address: str) -> None:
    saw = report(language, address)
    events = events_of(address, saw["session_id"])
    assert saw == {
        "language": language,
        "session_id": events[0].session_id,
        "reused": False,
        "first_text": "echo[1]: Hello!",
        "approved_tool": "Bash",
        "final_text": "It is done.",
        "events": len(events),
        "contiguous": True,
        "last_sequence": str(events[-1].sequence),
        "unknown_session": UNKNOWN,
        # Exact, which a double is not.
        "cursor_beyond_end": "9007199254740993",
    }
    assert dict(events[0].session_created.session.metadata) == {"customer_id": language}
    (resolved,) = (event.input_resolved for event in events if event.HasField("input_resolved"))
    assert resolved.response.HasField("allow")


def test_a_program_finds_its_session_again(language: str, address: str) -> None:
    first, second = report(language, address), report(language, address)
    assert (second["session_id"], second["reused"]) == (first["session_id"], True)
    assert second["first_text"] == "echo[3]: Hello!"
    assert second["events"] == len(events_of(address, first["session_id"])) > first["events"]


def test_a_program_says_why_a_turn_failed(language: str, address: str) -> None:
    done = run(language, address, FAILS)
    assert done.returncode != 0
    assert "The script failed with 401." in done.stderr
