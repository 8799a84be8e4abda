"""The session log over gRPC: gap-free, the same for everyone, from any point."""

import asyncio

import grpc
from google.protobuf import duration_pb2
from server_api import Api, Refused, kinds, say, script

from karta import v1

OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE


async def follow(api: Api, session: v1.Session, after: int, until: int, **fields: object) -> list[v1.Event]:
    request = v1.WatchSessionRequest(session_id=session.session_id, after_sequence=after, follow=True, **fields)
    stream = api.sessions.WatchSession(request)
    events: list[v1.Event] = []
    while not events or events[-1].sequence < until:
        events.extend((await stream.read()).events)
    stream.cancel()
    return events


async def test_watchers_from_any_point_see_the_same(api: Api) -> None:
    session = await api.create()
    watchers = [asyncio.create_task(follow(api, session, 0, 1 + 3 * 57)) for _ in range(20)]
    for _ in range(3):
        await api.send(session, script([{"text": "word " * 50, "pace": 0.001}]))
    everything = await api.events(session)
    assert [event.sequence for event in everything] == list(range(1, len(everything) + 1))
    assert len(everything) == 1 + 3 * 57
    for watcher in watchers:
        assert await watcher == everything
    for after in range(len(everything)):
        assert await api.events(session, after_sequence=after) == everything[after:]
    assert await api.events(session, after_sequence=len(everything)) == []


async def test_live_and_history_are_the_same_bytes(api: Api) -> None:
    session = await api.create()
    live: list[bytes] = []
    stream = api.turns.RunTurn(v1.RunTurnRequest(start=say(session, script([{"text": "a b c", "pace": 0.01}]))))
    async for frame in stream:
        live += [event.SerializeToString() for event in frame.events]
        assert not frame.events or frame.latest_sequence == frame.events[-1].sequence
    history = [event.SerializeToString() for event in await api.events(session, after_sequence=1)]
    assert live == history


async def test_a_turn_is_watched_alone_among_others(api: Api) -> None:
    session = await api.create()
    first = await api.start(session, script([{"text": "a b c", "pace": 0.02}]))
    second = await api.start(session, "second")
    await api.wait(second)
    for turn in (await api.get(first), await api.get(second)):
        request = v1.WatchTurnRequest(session_id=session.session_id, turn_id=turn.turn_id)
        events = [event async for frame in api.turns.WatchTurn(request) for event in frame.events]
        assert {event.turn_id for event in events} == {turn.turn_id}
        assert (events[0].sequence, events[-1].sequence) == (turn.first_sequence, turn.last_sequence)
        request.after_sequence = events[2].sequence
        again = [event async for frame in api.turns.WatchTurn(request) for event in frame.events]
        assert again == events[3:]
        request.after_sequence = turn.last_sequence
        frames = [frame async for frame in api.turns.WatchTurn(request)]
        assert [(list(frame.events), frame.latest_sequence) for frame in frames] == [([], turn.last_sequence)]


async def test_kinds_filter_and_the_cursor_moves_on(api: Api) -> None:
    session = await api.create()
    turn = await api.send(session, "hello")
    only = await api.events(session, kinds=["text", "turn_finished"])
    assert kinds(only) == ["text", "text", "turn_finished"]
    request = v1.WatchTurnRequest(session_id=session.session_id, turn_id=turn.turn_id, kinds=["text"])
    events = [event async for frame in api.turns.WatchTurn(request) for event in frame.events]
    assert kinds(events) == ["text", "text", "turn_finished"]
    request = v1.WatchSessionRequest(session_id=session.session_id, kinds=["error"])
    frames = [frame async for frame in api.sessions.WatchSession(request)]
    assert frames[-1].latest_sequence == turn.last_sequence
    with Refused(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID") as refused:
        await api.events(session, kinds=["texts"])
    assert "text" in refused.metadata["allowed"]


async def test_an_idle_stream_beats_with_its_cursor(api: Api) -> None:
    session = await api.create()
    request = v1.WatchSessionRequest(
        session_id=session.session_id, follow=True, heartbeat_interval=duration_pb2.Duration(seconds=1)
    )
    stream = api.sessions.WatchSession(request)
    assert len((await stream.read()).events) == 1
    for _ in range(2):
        beat = await stream.read()
        assert (len(beat.events), beat.latest_sequence) == (0, 1)
    stream.cancel()
    request.heartbeat_interval.seconds = 0
    with Refused(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"):
        async for _ in api.sessions.WatchSession(request):
            pass


async def test_a_cursor_beyond_the_end_is_refused(api: Api) -> None:
    session = await api.create()
    with Refused(OUT_OF_RANGE, "SEQUENCE_OUT_OF_RANGE") as refused:
        await api.events(session, after_sequence=7)
    assert refused.metadata == {"after_sequence": "7", "latest_sequence": "1"}


async def test_a_backlog_is_merged_and_says_the_same(api: Api) -> None:
    session = await api.create()
    words = " ".join(str(number) for number in range(5000))
    turn = await api.send(session, script([{"text": words}]))
    events = await api.events(session)
    assert "".join(event.text.text for event in events) == turn.text == words
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert len(events) < 500
