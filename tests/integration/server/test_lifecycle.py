"""What a server leaves behind when it stops or is killed, and what the next one makes of it."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from server_api import Api, Refused, kinds, say, script
from serving import dev_serve

from karta import v1

SLOW = script([{"text": "one two three", "pace": 0.01}, {"delay": 60}])
ASKS = script([{"tool": "Bash", "input": {"command": "date"}}], [{"text": "done"}])


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Api]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Api(channel)


async def read_until(api: Api, session: v1.Session, kind: str) -> list[v1.Event]:
    """Return the session's events up to the first of a kind."""
    stream = api.sessions.WatchSession(v1.WatchSessionRequest(session_id=session.session_id, follow=True))
    events: list[v1.Event] = []
    while kind not in kinds(events):
        events += (await stream.read()).events
    stream.cancel()
    return events


async def test_killed_in_a_turn_it_loses_nothing_that_was_seen(project: Path, environment: dict[str, str]) -> None:
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            session = await api.create(metadata={"a": "1"})
            turn = await api.start(session, SLOW)
            queued = await api.start(session, "and then?")
            seen = await read_until(api, session, "text")
            served.end(signal.SIGKILL)
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            interrupted = await api.get(turn)
            assert interrupted.state == v1.TURN_STATE_INTERRUPTED
            assert interrupted.error.reason == v1.ERROR_REASON_SERVER_KILLED
            after = await api.wait(queued)
            assert (after.state, after.text) == (v1.TURN_STATE_COMPLETED, "echo[2]: and then?")
            events = await api.events(session)
            assert events[: len(seen)] == seen
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            ends = [(e.turn_id, e.turn_finished.state) for e in events if e.HasField("turn_finished")]
            assert ends == [
                (turn.turn_id, v1.TURN_STATE_INTERRUPTED),
                (queued.turn_id, v1.TURN_STATE_COMPLETED),
            ]
            found = await api.create(metadata={"a": "1"}, reuse=v1.SESSION_REUSE_LATEST)
            assert found.session_id == session.session_id


async def test_killed_while_it_waits_for_an_answer(project: Path, environment: dict[str, str]) -> None:
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            session = await api.create()
            turn = await api.send(session, ASKS)
            (request,) = await api.pending(session)
            served.end(signal.SIGKILL)
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            assert (await api.get(turn)).state == v1.TURN_STATE_INTERRUPTED
            assert not await api.pending(session)
            with Refused(grpc.StatusCode.FAILED_PRECONDITION, "INPUT_ALREADY_RESOLVED"):
                await api.respond(request, allow=v1.Allow())
            tail = (await api.events(session))[-3:]
            assert kinds(tail) == ["input_resolved", "tool_result", "turn_finished"]
            assert tail[1].tool_result.outcome == v1.TOOL_OUTCOME_UNKNOWN
            now = (await api.sessions.GetSession(v1.GetSessionRequest(session_id=session.session_id))).session
            assert (now.pending_input_count, now.active_turn_id) == (0, "")


async def test_a_request_id_is_remembered_across_a_kill(project: Path, environment: dict[str, str]) -> None:
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            session = await api.create()
            turn = await api.start(session, "hello", request_id="once")
            await api.wait(turn)
            served.end(signal.SIGKILL)
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            assert (await api.start(session, "hello", request_id="once")).turn_id == turn.turn_id
            assert kinds(await api.events(session)).count("message_received") == 1


async def test_stopped_it_finishes_what_runs_and_keeps_what_waits(project: Path, environment: dict[str, str]) -> None:
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            session = await api.create()
            stream = api.turns.RunTurn(
                v1.RunTurnRequest(start=say(session, script([{"delay": 0.5}, {"text": "finished"}])))
            )
            await stream.read()
            queued = await api.start(session, "next")
            served.process.send_signal(signal.SIGTERM)
            events: list[v1.Event] = []
            while (frame := await stream.read()) is not grpc.aio.EOF:
                events += frame.events
            assert events[-1].turn_finished.state == v1.TURN_STATE_COMPLETED, "the stream saw its turn's end"
            assert served.process.wait(20) == 0
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            assert (await api.wait(queued)).text == "echo[2]: next"


async def test_stopped_it_interrupts_what_waits_for_a_person(project: Path, environment: dict[str, str]) -> None:
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            session = await api.create()
            turn = await api.send(session, ASKS)
            assert served.end(signal.SIGTERM) == 0
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            stopped = await api.get(turn)
            assert (stopped.state, stopped.error.reason) == (
                v1.TURN_STATE_INTERRUPTED,
                v1.ERROR_REASON_SERVER_STOPPING,
            )
            assert (await api.send(session, "still there?")).state == v1.TURN_STATE_COMPLETED


async def test_stopped_it_tells_open_streams_and_waits_why(project: Path, environment: dict[str, str]) -> None:
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        async with connected(served.address) as api:
            session = await api.create()
            watch = api.sessions.WatchSession(v1.WatchSessionRequest(session_id=session.session_id, follow=True))
            inputs = api.inputs.WatchInputRequests(v1.WatchInputRequestsRequest())
            converse = api.turns.Converse()
            opening = v1.OpenConversation(session_id=session.session_id)
            await converse.write(v1.ConverseRequest(open=opening))
            for stream in (watch, inputs, converse):
                await stream.read()
            served.process.send_signal(signal.SIGTERM)
            for stream in (watch, inputs, converse):
                with Refused(grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING"):
                    while await stream.read() is not grpc.aio.EOF:
                        pass
            assert served.process.wait(20) == 0
