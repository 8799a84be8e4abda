"""Streams and calls across the death of the server."""

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest
from project_programs import PlainServer, script, server_pid

from karta import v1
from karta_client import AsyncKarta, Event, Karta, TurnInterruptedError, UnavailableError

LONG = script([{"text": "one two three four five six seven eight", "pace": 0.05}, {"delay": 60}])


def check_turn(events: list[Event]) -> None:
    """The whole turn, without a gap or a double, ended by the kill."""
    first = events[0].sequence
    assert [event.sequence for event in events] == list(range(first, first + len(events)))
    assert events[0].type == "message_received"
    assert [event.type for event in events].count("turn_finished") == 1
    assert events[-1].type == "turn_finished"
    assert events[-1].state == v1.TURN_STATE_INTERRUPTED
    assert events[-1].error.reason == v1.ERROR_REASON_SERVER_KILLED


def restart(server: PlainServer) -> threading.Thread:
    def work() -> None:
        server.kill()
        server.start()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_stream_survives_kill_9_and_restart(plain_server: PlainServer) -> None:
    with Karta(plain_server.address) as app:
        events: list[Event] = []
        for event in app.stream(LONG):
            events.append(event)
            if event.type == "text" and event.text.strip() == "three":
                thread = restart(plain_server)
        thread.join()
        check_turn(events)
        history = app.session(id=events[0].session_id).history()
        assert [event.raw for event in history[-len(events) :]] == [event.raw for event in events]


async def test_an_async_stream_survives_kill_9_and_restart(plain_server: PlainServer) -> None:
    async with AsyncKarta(plain_server.address) as app:
        events: list[Event] = []
        async for event in app.stream(LONG):
            events.append(event)
            if event.type == "text" and event.text.strip() == "three":
                thread = restart(plain_server)
        await asyncio.to_thread(thread.join)
        check_turn(events)


def test_a_watch_survives_a_graceful_restart(plain_server: PlainServer) -> None:
    with Karta(plain_server.address) as app, Karta(plain_server.address) as other:
        session = app.session(metadata={"k": "v"})
        seen: list[int] = []
        texts: list[str] = []
        session.send_sync("one")
        for event in session.watch():
            seen.append(event.sequence)
            if event.type == "message_completed":
                texts.append(event.text)
                if len(texts) == 1:
                    plain_server.stop()
                    plain_server.start()
                    other.session(id=session.id).send_sync("two")
            if event.type == "turn_finished" and len(texts) == 2:
                break
        assert texts == ["echo[1]: one", "echo[2]: two"]
        assert seen == list(range(1, len(seen) + 1))


def test_a_stream_survives_the_death_of_the_embedded_server(project: Path) -> None:
    with Karta(project=project) as app:
        events: list[Event] = []
        for event in app.stream(LONG):
            events.append(event)
            if event.type == "text" and event.text.strip() == "three":
                os.kill(server_pid(project), signal.SIGKILL)
        check_turn(events)


async def test_the_awaitable_parts_survive_it_too(project: Path) -> None:
    with Karta(project=project) as app:
        events: list[Event] = []
        async for event in app.stream(LONG):
            events.append(event)
            if event.type == "text" and event.text.strip() == "three":
                os.kill(server_pid(project), signal.SIGKILL)
        check_turn(events)
        await app.aclose()


def test_send_tells_that_its_turn_was_interrupted(plain_server: PlainServer) -> None:
    with Karta(plain_server.address) as app:
        session = app.session()

        def kill() -> None:
            for event in app.session(id=session.id).watch():
                if event.type == "text":
                    break
            restart(plain_server).join()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(TurnInterruptedError) as caught:
            session.send_sync(LONG)
        killer.join()
        assert caught.value.reason == "SERVER_KILLED"
        assert caught.value.turn.state == v1.TURN_STATE_INTERRUPTED
        assert session.send_sync("go on").text.endswith("go on")


def test_a_server_that_does_not_come_back_is_given_up(plain_server: PlainServer) -> None:
    with Karta(plain_server.address, reconnect_timeout=3.0) as app:
        stream = app.stream(LONG)
        assert next(stream).type == "message_received"
        plain_server.kill()
        with pytest.raises(UnavailableError):
            list(stream)
        plain_server.start()
        assert app.send_sync("x").text == "echo[1]: x"


def test_a_server_that_was_never_there_is_given_up_sooner() -> None:
    with Karta("127.0.0.1:1", reconnect_timeout=0.5) as app, pytest.raises(UnavailableError) as caught:
        app.send_sync("x")
    assert caught.value.code == "UNAVAILABLE"
