"""What is committed has its effect, whatever becomes of the call that asked for it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, field_mask_pb2
from server_api import Api, Refused, kinds, say, script

from karta import v1
from karta_server.config import load
from karta_server.errors import KartaError
from karta_server.server import Server
from karta_server.storage.contract import SessionKey
from karta_server.storage.sql.store import SqlStore

ASKS = script([{"tool": "Bash", "input": {"command": "date"}}], [{"text": "done"}])
SLOW = script([{"text": "one two three four", "pace": 0.2}])


@pytest.fixture
def slow_commits(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let every write take its time between its commit and its caller's hearing of it."""

    def begin() -> None:
        write: Callable[..., Awaitable[Any]] = server._store.write

        async def slow(*arguments: Any) -> Any:
            result = await write(*arguments)
            await asyncio.sleep(0.3)
            return result

        monkeypatch.setattr(server._store, "write", slow)

    return begin


async def test_a_turn_whose_caller_left_during_its_commit_runs(api: Api, slow_commits: Callable[[], None]) -> None:
    session = await api.create()
    slow_commits()
    with pytest.raises(grpc.aio.AioRpcError):
        await api.turns.StartTurn(say(session, "hello"), timeout=0.15)
    (turn,) = (await api.turns.ListTurns(v1.ListTurnsRequest(session_id=session.session_id))).turns
    assert (await api.wait(turn)).text == "echo[1]: hello"
    assert (await api.send(session, "next")).state == v1.TURN_STATE_COMPLETED


async def test_an_answer_whose_caller_left_during_its_commit_counts(api: Api, slow_commits: Callable[[], None]) -> None:
    session = await api.create()
    turn = await api.send(session, ASKS)
    (request,) = await api.pending(session)
    slow_commits()
    answer = v1.RespondToInputRequest(
        input_request_id=request.input_request_id, response=v1.InputResponse(allow=v1.Allow())
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await api.inputs.RespondToInput(answer, timeout=0.15)
    assert (await api.wait(turn)).text == "done"


async def test_a_wait_has_one_deadline_however_much_happens(api: Api) -> None:
    session = await api.create()
    turn = await api.start(session, SLOW)
    request = v1.WaitTurnRequest(session_id=session.session_id, turn_id=turn.turn_id)
    request.timeout.CopyFrom(duration_pb2.Duration(nanos=500_000_000))
    with Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMEOUT"):
        await api.turns.WaitTurn(request)
    assert (await api.get(turn)).state == v1.TURN_STATE_RUNNING


async def test_an_end_that_cannot_be_recorded_is_recorded_later(
    api: Api, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await api.create()
    turn = await api.start(session, script([{"delay": 0.2}, {"text": "x"}]))
    write = server._store.write
    away = True

    async def failing(*arguments: Any) -> Any:
        if away:
            raise KartaError(v1.ERROR_REASON_STORE_UNAVAILABLE, "The disk is full.")
        return await write(*arguments)

    monkeypatch.setattr(server._store, "write", failing)
    await asyncio.sleep(0.8)
    assert (await api.get(turn)).state == v1.TURN_STATE_RUNNING
    away = False
    assert (await api.wait(turn)).state in (v1.TURN_STATE_COMPLETED, v1.TURN_STATE_FAILED)
    assert (await api.send(session, "next")).state == v1.TURN_STATE_COMPLETED


async def test_turns_that_wait_for_people_leave_their_places_to_others(project: Path) -> None:
    (project / "karta.jsonc").write_text('{"limits": {"max_running_turns": 1}}')
    config = load(project, listen="127.0.0.1:0", harness="scripted")
    config.state.mkdir()
    server = Server(config)
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            api = Api(channel)
            waiting = [await api.send(await api.create(), ASKS) for _ in range(3)]
            assert {turn.state for turn in waiting} == {v1.TURN_STATE_INPUT_REQUIRED}
            assert (await api.send(await api.create(), "me too")).state == v1.TURN_STATE_COMPLETED
            for turn in waiting:
                (request,) = await api.pending(v1.Session(session_id=turn.session_id))
                await api.respond(request, allow=v1.Allow())
                assert (await api.wait(turn)).state == v1.TURN_STATE_COMPLETED
            running = [await api.start(await api.create(), script([{"delay": 0.1}])) for _ in range(3)]
            assert [turn.state for turn in running].count(v1.TURN_STATE_RUNNING) == 1
            for turn in running:
                assert (await api.wait(turn)).state == v1.TURN_STATE_COMPLETED
    finally:
        await server.stop(0)


async def test_a_repeated_request_gets_its_answer_whatever_changed_since(api: Api) -> None:
    session = await api.create(request_id="make")
    turn = await api.start(session, "hello", request_id="say")
    await api.wait(turn)
    archived = v1.Session(session_id=session.session_id, state=v1.SESSION_STATE_ARCHIVED)
    mask = field_mask_pb2.FieldMask(paths=["state"])
    await api.sessions.UpdateSession(v1.UpdateSessionRequest(session=archived, update_mask=mask))
    assert (await api.start(session, "hello", request_id="say")).turn_id == turn.turn_id
    assert (await api.create(request_id="make")).session_id == session.session_id
    delete = v1.DeleteSessionRequest(session_id=session.session_id, request_id="delete")
    await api.sessions.DeleteSession(delete)
    await api.sessions.DeleteSession(delete)
    with Refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
        # What the answer told of is deleted, and so is the answer.
        await api.start(session, "hello", request_id="say")


async def test_a_refused_deletion_stops_nothing(api: Api) -> None:
    session = await api.create(request_id="r1")
    turn = await api.start(session, script([{"delay": 60}]))
    with Refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await api.sessions.DeleteSession(v1.DeleteSessionRequest(session_id=session.session_id, request_id="r1"))
    assert (await api.get(turn)).state == v1.TURN_STATE_RUNNING


async def test_archiving_cancels_what_waits(api: Api) -> None:
    session = await api.create()
    active = await api.start(session, script([{"delay": 0.3}, {"text": "done"}]))
    queued = [await api.start(session, f"{n}") for n in range(3)]
    archived = v1.Session(session_id=session.session_id, state=v1.SESSION_STATE_ARCHIVED)
    mask = field_mask_pb2.FieldMask(paths=["state"])
    await api.sessions.UpdateSession(v1.UpdateSessionRequest(session=archived, update_mask=mask))
    for turn in queued:
        ended = await api.get(turn)
        assert (ended.state, ended.state_reason) == (v1.TURN_STATE_CANCELLED, "The session was archived.")
    assert (await api.wait(active)).text == "done"


async def test_the_name_is_that_of_the_moment_of_speaking(api: Api) -> None:
    alice = v1.Participant(participant_id="p", display_name="Alice")
    session = await api.create(participants=[alice])
    await api.start(session, script([{"delay": 0.3}]))
    queued = await api.start(session, "transfer the money", participant_id="p")
    renamed = v1.Participant(participant_id="p", display_name="Bob")
    mask = field_mask_pb2.FieldMask(paths=["display_name"])
    await api.sessions.UpdateParticipant(
        v1.UpdateParticipantRequest(session_id=session.session_id, participant=renamed, update_mask=mask)
    )
    assert (await api.wait(queued)).text == "echo[2]: Alice: transfer the money"


async def test_only_owners_manage_participants_when_somebody_is_named(api: Api) -> None:
    owner = v1.Participant(participant_id="o", role=v1.PARTICIPANT_ROLE_OWNER)
    session = await api.create(participants=[owner, v1.Participant(participant_id="m")])

    def adding(actor: str) -> v1.AddParticipantRequest:
        participant = v1.Participant(participant_id=f"by-{actor}")
        return v1.AddParticipantRequest(session_id=session.session_id, participant=participant, actor=actor)

    with Refused(grpc.StatusCode.PERMISSION_DENIED, "PARTICIPANT_IS_NOT_OWNER"):
        await api.sessions.AddParticipant(adding("m"))
    await api.sessions.AddParticipant(adding("o"))
    joined = next(e for e in await api.events(session) if e.HasField("participant_joined"))
    assert (joined.actor, joined.participant_joined.participant.participant_id) == ("o", "by-o")
    leaving = v1.RemoveParticipantRequest(session_id=session.session_id, participant_id="m", actor="m")
    assert len((await api.sessions.RemoveParticipant(leaving)).session.participants) == 2


async def test_a_filtered_stream_is_not_sent_what_it_leaves_out(api: Api) -> None:
    session = await api.create()
    request = v1.RunTurnRequest(start=say(session, SLOW), kinds=["turn_finished"])
    frames = [frame async for frame in api.turns.RunTurn(request)]
    assert [kinds(list(frame.events)) for frame in frames] == [["turn_finished"]]


async def test_a_repeated_command_of_a_turn_that_is_over_does_not_hold_the_stream(api: Api) -> None:
    session = await api.create()
    turn = await api.start(session, "hello", request_id="r1")
    await api.wait(turn)
    stream = api.turns.Converse()
    await stream.write(v1.ConverseRequest(open=v1.OpenConversation(session_id=session.session_id)))
    await stream.write(v1.ConverseRequest(start_turn=say(v1.Session(), "hello", request_id="r1")))
    await stream.done_writing()
    results = []
    while (response := await stream.read()) is not grpc.aio.EOF:
        results.append(response.command_result)
    assert results[-1].turn_started.turn.turn_id == turn.turn_id


class _RolledBackError(Exception):
    """Ends the first run of a unit."""


async def test_units_may_run_twice(api: Api, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that could not be committed is tried again, unit by unit: nothing may be there twice."""
    write: Callable[..., Awaitable[Any]] = server._store.write

    async def twice(unit: Callable[[Any], Any], *keys: Any) -> Any:
        def first(tx: Any) -> None:
            unit(tx)
            raise _RolledBackError

        with pytest.raises((_RolledBackError, KartaError)):
            await write(first, *keys)
        return await write(unit, *keys)

    monkeypatch.setattr(server._store, "write", twice)
    session = await api.create(participants=[v1.Participant(participant_id="al")], metadata={"a": "1"})
    assert [participant.participant_id for participant in session.participants] == ["al"]
    turn = await api.send(session, ASKS, participant_id="al")
    (request,) = await api.pending(session)
    await api.respond(request, allow=v1.Allow())
    assert (await api.wait(turn)).text == "done"
    events = await api.events(session)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    for kind in ("session_created", "message_received", "input_required", "input_resolved", "turn_finished"):
        assert kinds(events).count(kind) == 1, kind


async def test_a_drain_loses_no_turn_that_is_just_claimed(
    api: Api, server: Server, slow_commits: Callable[[], None], project: Path
) -> None:
    session = await api.create()
    active = await api.start(session, script([{"delay": 0.2}]))
    queued = await api.start(session, "next")
    slow_commits()
    await api.wait(active)
    await server.stop(5)
    store = SqlStore(project / ".karta" / "karta.db")
    await store.open()
    try:
        key = SessionKey("default", session.session_id)
        found = await store.turns.get(key, queued.turn_id)
        assert found is not None
        assert found.state in (v1.TURN_STATE_QUEUED, v1.TURN_STATE_COMPLETED)
        assert not await store.write(lambda tx: tx.turns.claims())
    finally:
        await store.close()
