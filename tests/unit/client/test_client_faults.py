"""Both clients against a real server that fails on purpose: each test names the fault."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest

from karta import v1
from karta.v1.session_service_pb2_grpc import SessionServiceServicer, add_SessionServiceServicer_to_server
from karta.v1.turn_service_pb2_grpc import TurnServiceServicer, add_TurnServiceServicer_to_server
from karta_client import AsyncKarta, Event, InternalError, Karta, NotFoundError, UnavailableError, traceparent

LAST = 12


def event(sequence: int) -> v1.Event:
    if sequence == LAST:
        return v1.Event(sequence=sequence, turn_id="t", turn_finished=v1.TurnFinished(state=v1.TURN_STATE_COMPLETED))
    return v1.Event(sequence=sequence, turn_id="t", text=v1.TextDelta(text=f"{sequence} "))


class Faulty(SessionServiceServicer, TurnServiceServicer):
    """A log of LAST events in one turn. `fault` is called with the number of the call and of the event."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, str]] = []
        self.fault: Callable[[int, int], grpc.StatusCode | str | None] = lambda call, sequence: None

    def _note(self, name: str, request: Any, context: Any) -> int:
        self.calls.append((name, request))
        self.metadata.append(dict(context.invocation_metadata()))
        return len(self.calls)

    async def CreateSession(self, request: Any, context: Any) -> v1.CreateSessionResponse:  # noqa: N802
        await self._fail(self._note("CreateSession", request, context), 0, context)
        return v1.CreateSessionResponse(session=v1.Session(session_id="s"))

    async def RunTurn(self, request: Any, context: Any) -> AsyncIterator[v1.RunTurnResponse]:  # noqa: N802
        call = self._note("RunTurn", request, context)
        async for found in self._events(call, 0, context):
            yield v1.RunTurnResponse(events=found, latest_sequence=found[-1].sequence)

    async def WatchTurn(self, request: Any, context: Any) -> AsyncIterator[v1.WatchTurnResponse]:  # noqa: N802
        call = self._note("WatchTurn", request, context)
        async for found in self._events(call, request.after_sequence, context):
            yield v1.WatchTurnResponse(events=found, latest_sequence=found[-1].sequence)

    async def WatchSession(self, request: Any, context: Any) -> AsyncIterator[v1.WatchSessionResponse]:  # noqa: N802
        call = self._note("WatchSession", request, context)
        async for found in self._events(call, request.after_sequence, context):
            yield v1.WatchSessionResponse(events=found, latest_sequence=found[-1].sequence)

    async def _events(self, call: int, after: int, context: Any) -> AsyncIterator[list[v1.Event]]:
        for sequence in range(after + 1, LAST + 1):
            fault = await self._fail(call, sequence, context)
            if fault == "end":
                return
            if fault == "repeat":
                yield [event(sequence - 1)]
            if fault != "skip":
                yield [event(sequence)]

    async def _fail(self, call: int, sequence: int, context: Any) -> str | None:
        fault = self.fault(call, sequence)
        if isinstance(fault, grpc.StatusCode):
            await context.abort(fault, "a fault of the test")
        assert not isinstance(fault, grpc.StatusCode)
        return fault


class Running:
    """The faulty server, in a thread with a loop of its own."""

    def __init__(self) -> None:
        self.faulty = Faulty()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        self._run(self._start())

    def stop(self) -> None:
        self._run(self._server.stop(None))

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_SessionServiceServicer_to_server(self.faulty, self._server)
        add_TurnServiceServicer_to_server(self.faulty, self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.close()


Follow = Callable[[Running, str], list[Event]]


def follow_sync(running: Running, what: str) -> list[Event]:
    with Karta(running.address, reconnect_timeout=5.0) as app:
        return list(app.stream("x") if what == "turn" else app.session().watch(follow=False))


def follow_async(running: Running, what: str) -> list[Event]:
    async def follow() -> list[Event]:
        async with AsyncKarta(running.address, reconnect_timeout=5.0) as app:
            stream = app.stream("x") if what == "turn" else (await app.session()).watch(follow=False)
            return [event async for event in stream]

    return asyncio.run(follow())


def follow_plain_async(running: Running, what: str) -> list[Event]:
    async def follow() -> list[Event]:
        app = Karta(running.address, reconnect_timeout=5.0)
        stream = app.stream("x") if what == "turn" else app.session().watch(follow=False)
        events = [event async for event in stream]
        await app.aclose()
        return events

    return asyncio.run(follow())


follows = pytest.mark.parametrize("follow", [follow_sync, follow_async, follow_plain_async])
streams = pytest.mark.parametrize("what", ["turn", "session"])


def sequences(events: list[Event]) -> list[int]:
    return [event.sequence for event in events]


@follows
@streams
def test_a_stream_cut_again_and_again(running: Running, follow: Follow, what: str) -> None:
    """Fault: the stream breaks after every third event, also at its very beginning."""
    seen: set[int] = set()

    def cut(call: int, sequence: int) -> grpc.StatusCode | None:
        if sequence % 3 == 1 and sequence not in seen:
            seen.add(sequence)
            return grpc.StatusCode.UNAVAILABLE
        return None

    running.faulty.fault = cut
    assert sequences(follow(running, what)) == list(range(1, LAST + 1))
    names = [name for name, _ in running.faulty.calls]
    if what == "turn":
        assert names == ["CreateSession", "RunTurn", "RunTurn", "WatchTurn", "WatchTurn", "WatchTurn"]
        assert running.faulty.calls[1][1] == running.faulty.calls[2][1]


@follows
@streams
def test_a_server_that_repeats_itself(running: Running, follow: Follow, what: str) -> None:
    """Fault: every event comes twice."""
    running.faulty.fault = lambda call, sequence: "repeat" if sequence > 1 else None
    assert sequences(follow(running, what)) == list(range(1, LAST + 1))


@follows
def test_a_turn_stream_that_just_ends(running: Running, follow: Follow) -> None:
    """Fault: the server ends the stream without an error and without the terminal event."""
    running.faulty.fault = lambda call, sequence: "end" if (call, sequence) == (2, 5) else None
    assert sequences(follow(running, "turn")) == list(range(1, LAST + 1))


@follows
def test_a_log_with_a_hole(running: Running, follow: Follow) -> None:
    """Fault: an event is missing; a client must not pretend that nothing happened."""
    running.faulty.fault = lambda call, sequence: "skip" if sequence == 4 else None
    with pytest.raises(InternalError, match="Event 4"):
        follow(running, "session")


@follows
@streams
def test_a_failure_that_lasts_is_raised(running: Running, follow: Follow, what: str) -> None:
    """Fault: the log is gone; trying again is of no use."""
    running.faulty.fault = lambda call, sequence: grpc.StatusCode.NOT_FOUND if sequence == 5 else None
    with pytest.raises(NotFoundError):
        follow(running, what)
    assert len(running.faulty.calls) == 2


@follows
def test_unavailable_then_ok(running: Running, follow: Follow) -> None:
    """Fault: the first two calls are refused."""
    running.faulty.fault = lambda call, sequence: grpc.StatusCode.UNAVAILABLE if call <= 2 else None
    assert sequences(follow(running, "turn")) == list(range(1, LAST + 1))
    requests = [request for name, request in running.faulty.calls if name == "CreateSession"]
    assert len(requests) == 3
    assert requests[0] == requests[1] == requests[2]
    assert requests[0].request_id


def test_a_restart_between_two_events(running: Running) -> None:
    """Fault: the server stops and comes back at the same address while a stream is read."""
    with Karta(running.address, reconnect_timeout=10.0) as app:
        got = []
        for found in app.stream("x"):
            got.append(found.sequence)
            if found.sequence == 3:
                running.stop()
                running.start()
    assert got == list(range(1, LAST + 1))


def test_a_server_that_stays_away(running: Running) -> None:
    """Fault: the server does not come back; the wait is bounded."""
    running.faulty.fault = lambda call, sequence: grpc.StatusCode.UNAVAILABLE if sequence == 5 else None
    got = []
    with Karta(running.address, reconnect_timeout=0.5) as app, pytest.raises(UnavailableError):
        got.extend(found.sequence for found in app.stream("x"))


async def test_leaving_an_async_stream_cancels_the_call(running: Running) -> None:
    gone = threading.Event()
    hold = asyncio.Event

    async def wait(call: int, sequence: int, context: Any) -> str | None:
        if sequence == 3:
            try:
                await hold().wait()
            finally:
                gone.set()
        return None

    running.faulty._fail = wait  # type: ignore[method-assign]
    async with AsyncKarta(running.address) as app:
        stream = app.stream("x")
        async for found in stream:
            if found.sequence == 2:
                break
        await stream.aclose()
        assert await asyncio.to_thread(gone.wait, 10)


async def test_trace_context_is_sent(running: Running) -> None:
    context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    other = "00-af7651916cd43dd8448eb211c80319c0-b7ad6b7169203331-01"
    token = traceparent.set(context)
    async with AsyncKarta(running.address) as app:
        await app.session()
    async with AsyncKarta(running.address, traceparent=other) as app:
        await app.session()
    traceparent.reset(token)
    async with AsyncKarta(running.address) as app:
        await app.session()
    assert [found.get("traceparent") for found in running.faulty.metadata] == [context, other, None]
