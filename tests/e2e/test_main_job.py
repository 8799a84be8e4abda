"""The main job through kartactl, with the real Claude Code: stream, watch again, kill the server, watch on."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import grpc
import pytest
from server_api import Api, script
from serving import dev_serve

from karta import v1

LIMIT_SECONDS = 50.0


async def kartactl(address: str, environment: dict[str, str], *arguments: str) -> list[dict[str, object]]:
    """Run kartactl with --output jsonl and return its lines."""
    command = [sys.executable, "-m", "karta_client.cli", "--target", address, "--output", "jsonl", *arguments]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    try:
        out, _ = await asyncio.wait_for(process.communicate(), LIMIT_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return [json.loads(line) for line in out.decode().splitlines()]


def sequences(events: list[dict[str, object]]) -> list[int]:
    return [int(str(event["sequence"])) for event in events]


async def test_a_stream_and_a_second_watch_print_the_same(claude: object, offline: dict[str, str]) -> None:
    address = claude.address  # type: ignore[attr-defined]
    streamed = await kartactl(address, offline, "stream", script([{"think": "hm"}, {"text": "one two three"}]))
    assert sequences(streamed) == list(range(1, len(streamed) + 1))
    session = str(streamed[0]["session_id"])
    assert await kartactl(address, offline, "sessions", "watch", session, "--after", "0") == streamed


@pytest.mark.timeout(120)
async def test_killed_in_the_middle_the_log_goes_on(agents_project: Path, offline: dict[str, str]) -> None:
    listen = ("--listen", "127.0.0.1:0", "--harness", "claude_code")
    slow = script([{"text": "a long answer " * 50, "pace": 0.05}])
    with dev_serve(agents_project, offline, *listen) as served:
        async with grpc.aio.insecure_channel(served.address) as channel:
            api = Api(channel)
            session = await api.create()
            turn = await api.start(session, slow)
            seen: list[v1.Event] = []
            stream = api.sessions.WatchSession(v1.WatchSessionRequest(session_id=session.session_id, follow=True))
            while sum(event.HasField("text") for event in seen) < 3:
                seen += (await stream.read()).events
            served.end(signal.SIGKILL)
    with dev_serve(agents_project, offline, *listen) as served:
        events = await kartactl(served.address, offline, "sessions", "watch", session.session_id, "--after", "0")
        assert sequences(events) == list(range(1, len(events) + 1))
        assert len(events) > len(seen)
        assert [event["sequence"] for event in events[: len(seen)]] == [str(event.sequence) for event in seen]
        assert events[-1]["turn_id"] == turn.turn_id
        assert events[-1]["turn_finished"]["state"] == "TURN_STATE_INTERRUPTED"  # type: ignore[index]
        async with grpc.aio.insecure_channel(served.address) as channel:
            api = Api(channel)
            assert await api.events(session, after_sequence=0) != []
            after = await api.send(session, script([{"text": "still here"}]))
            assert (after.state, after.text) == (v1.TURN_STATE_COMPLETED, "still here")
        served.end(signal.SIGTERM)
