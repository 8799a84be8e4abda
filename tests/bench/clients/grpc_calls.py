"""Scenarios against Karta and against the bare server: the same client code for both."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from karta import v1
from karta.v1.input_service_pb2_grpc import InputServiceStub
from karta.v1.session_service_pb2_grpc import SessionServiceStub
from karta.v1.turn_service_pb2_grpc import TurnServiceStub
from tests.bench.payload import SESSION_ID, LostEventsError, Reader, prompt

Measured = dict[str, Any]


def say(session_id: str, text: str) -> v1.StartTurnRequest:
    """Return a request to start a turn."""
    return v1.StartTurnRequest(session_id=session_id, message=v1.Message(parts=[v1.Part(text=text)]))


class Scenario:
    """A channel to the server."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def open(self) -> None:
        """Connect and prepare what every round needs."""
        self.channel = grpc.aio.insecure_channel(self._address, options=[("grpc.max_receive_message_length", -1)])
        self.sessions = SessionServiceStub(self.channel)
        self.turns = TurnServiceStub(self.channel)
        self.inputs = InputServiceStub(self.channel)
        self.stream = self.channel.unary_stream(
            "/bench.Bare/Stream", v1.RunTurnRequest.SerializeToString, v1.Event.FromString
        )
        self.watch = self.channel.unary_stream(
            "/bench.Bare/Watch", v1.WatchSessionRequest.SerializeToString, v1.Event.FromString
        )
        self.idle = self.channel.unary_stream(
            "/bench.Bare/Idle", v1.WatchSessionRequest.SerializeToString, v1.Event.FromString
        )
        self.publish = self.channel.unary_unary(
            "/bench.Bare/Publish", v1.RunTurnRequest.SerializeToString, v1.StartTurnResponse.FromString
        )
        self.echo = self.channel.unary_unary(
            "/bench.Bare/Echo", v1.RespondToInputRequest.SerializeToString, v1.RespondToInputResponse.FromString
        )
        await self.channel.channel_ready()

    async def close(self) -> None:
        """Disconnect."""
        await self.channel.close()

    async def session(self) -> str:
        """Make a session."""
        return (await self.sessions.CreateSession(v1.CreateSessionRequest())).session.session_id


class Turns(Scenario):
    """Turns at once, each read to its end on a RunTurn stream of its own."""

    def __init__(self, address: str, turns: int, pieces: int) -> None:
        super().__init__(address)
        self._turns, self._pieces = turns, pieces
        self._prompt = prompt(pieces)

    async def open(self) -> None:
        await super().open()
        self._sessions = [await self.session() for _ in range(self._turns)]

    async def run(self) -> Measured:
        """Run all turns once."""
        begin = time.perf_counter()
        await asyncio.gather(*(self._turn(session) for session in self._sessions))
        return {"count": self._turns * self._pieces, "seconds": time.perf_counter() - begin}

    async def _turn(self, session: str) -> None:
        reader = Reader()
        async for frame in self.turns.RunTurn(v1.RunTurnRequest(start=say(session, self._prompt))):
            for event in frame.events:
                reader.take(event)
        reader.require(self._pieces)


class BareTurns(Turns):
    """The same from the bare server: a message an event."""

    async def session(self) -> str:
        return SESSION_ID

    async def _turn(self, session: str) -> None:
        reader = Reader()
        async for event in self.stream(v1.RunTurnRequest(start=say(session, self._prompt))):
            reader.take(event)
        reader.require(self._pieces)


class CatchUp(Scenario):
    """One client reads a long finished session from its beginning."""

    def __init__(self, address: str, turns: int, pieces: int) -> None:
        super().__init__(address)
        self._turns, self._pieces = turns, pieces

    async def open(self) -> None:
        await super().open()
        self._session = await self.session()
        for _ in range(self._turns):
            await self.turns.SendMessage(v1.SendMessageRequest(start=say(self._session, prompt(self._pieces))))

    async def run(self) -> Measured:
        """Read it once."""
        reader = Reader()
        begin = time.perf_counter()
        async for frame in self.sessions.WatchSession(v1.WatchSessionRequest(session_id=self._session)):
            for event in frame.events:
                reader.take(event)
        took = time.perf_counter() - begin
        reader.require(self._turns * self._pieces)
        return {"count": reader.texts, "seconds": took}


class FanOut(Scenario):
    """One turn, watched by many."""

    def __init__(self, address: str, watchers: int, pieces: int) -> None:
        super().__init__(address)
        self._watchers, self._pieces = watchers, pieces
        self._prompt = prompt(pieces)

    async def open(self) -> None:
        await super().open()
        self._session = await self.session()
        self._streams = [await self._watch() for _ in range(self._watchers)]

    async def run(self) -> Measured:
        """Run the turn, and read it everywhere."""
        begin = time.perf_counter()
        start = asyncio.ensure_future(self._start())
        await asyncio.gather(start, *(self._read(stream) for stream in self._streams))
        return {"count": self._watchers * self._pieces, "seconds": time.perf_counter() - begin}

    async def _watch(self) -> AsyncIterator[Any]:
        """Begin to watch, and wait until it has begun: a session's first event is there already."""
        stream = self.sessions.WatchSession(v1.WatchSessionRequest(session_id=self._session, follow=True))
        frames = aiter(stream)
        await anext(frames)
        return frames

    async def _start(self) -> None:
        await self.turns.StartTurn(say(self._session, self._prompt))

    async def _read(self, frames: AsyncIterator[Any]) -> None:
        reader = Reader()
        async for frame in frames:
            for event in frame.events:
                reader.take(event)
            if frame.events and frame.events[-1].HasField("turn_finished"):
                break
        reader.require(self._pieces)


class BareFanOut(FanOut):
    """The same from the bare server: a message an event."""

    async def session(self) -> str:
        return SESSION_ID

    async def _watch(self) -> AsyncIterator[Any]:
        events = aiter(self.watch(v1.WatchSessionRequest()))
        await anext(events)
        return events

    async def _start(self) -> None:
        await self.publish(v1.RunTurnRequest(start=say(SESSION_ID, self._prompt)))

    async def _read(self, events: AsyncIterator[Any]) -> None:
        reader = Reader()
        while reader.texts < self._pieces:
            reader.take(await anext(events))


class Callers(Scenario):
    """Callers that send one message after another, each in a session of its own."""

    def __init__(self, address: str, callers: int, turns: int) -> None:
        super().__init__(address)
        self._callers, self._turns = callers, turns

    async def open(self) -> None:
        await super().open()
        self._sessions = [await self.session() for _ in range(self._callers)]

    async def run(self) -> Measured:
        """Send all messages."""
        latencies: list[float] = []
        begin = time.perf_counter()
        await asyncio.gather(*(self._call(session, latencies) for session in self._sessions))
        took = time.perf_counter() - begin
        return {"count": self._callers * self._turns, "seconds": took, "latencies": latencies}

    async def _call(self, session: str, latencies: list[float]) -> None:
        request = v1.SendMessageRequest(start=say(session, "hello"))
        for _ in range(self._turns):
            begin = time.perf_counter()
            turn = (await self.turns.SendMessage(request)).turn
            latencies.append(time.perf_counter() - begin)
            if turn.state != v1.TURN_STATE_COMPLETED or not turn.text.endswith("hello"):
                raise LostEventsError(f"the turn is {v1.TurnState.Name(turn.state)} with the text {turn.text!r}")


class Approvals(Scenario):
    """A turn that asks again and again; each answer is timed."""

    def __init__(self, address: str, approvals: int) -> None:
        super().__init__(address)
        self._approvals = approvals
        blocks = ",".join(['{"tool":"Bash","input":{"command":"date"}}'] * approvals)
        self._prompt = f"SCRIPT:[[{blocks}]]END"

    async def open(self) -> None:
        await super().open()
        self._session = await self.session()

    async def run(self) -> Measured:
        """Run the turn."""
        latencies: list[float] = []
        begin = time.perf_counter()
        async for frame in self.turns.RunTurn(v1.RunTurnRequest(start=say(self._session, self._prompt))):
            asked = [event.input_required.input_request for event in frame.events if event.HasField("input_required")]
            latencies += [await self._allow(request.input_request_id) for request in asked]
        if len(latencies) != self._approvals:
            raise LostEventsError(f"{len(latencies)} approvals instead of {self._approvals}")
        return {"count": self._approvals, "seconds": time.perf_counter() - begin, "latencies": latencies}

    async def _allow(self, input_request_id: str) -> float:
        request = v1.RespondToInputRequest(
            input_request_id=input_request_id, response=v1.InputResponse(allow=v1.Allow())
        )
        begin = time.perf_counter()
        await self.inputs.RespondToInput(request)
        return time.perf_counter() - begin


class BareCalls(Scenario):
    """Unary calls of the bare server, one after another."""

    def __init__(self, address: str, calls: int) -> None:
        super().__init__(address)
        self._calls = calls

    async def run(self) -> Measured:
        """Make the calls."""
        request = v1.RespondToInputRequest(input_request_id=SESSION_ID, response=v1.InputResponse(allow=v1.Allow()))
        latencies: list[float] = []
        first = time.perf_counter()
        for _ in range(self._calls):
            begin = time.perf_counter()
            await self.echo(request)
            latencies.append(time.perf_counter() - begin)
        return {"count": self._calls, "seconds": time.perf_counter() - first, "latencies": latencies}


class IdleWatches(Scenario):
    """Streams that are open and get nothing: each round opens so many more."""

    def __init__(self, address: str, watches: int) -> None:
        super().__init__(address)
        self._watches = watches
        self._streams: list[Any] = []

    async def run(self) -> Measured:
        """Open the streams and wait until each has begun."""
        begin = time.perf_counter()
        for _ in range(self._watches):
            self._streams.append(await self._begin())
        return {"count": self._watches, "seconds": time.perf_counter() - begin}

    async def _begin(self) -> AsyncIterator[Any]:
        frames = aiter(self.sessions.WatchSession(v1.WatchSessionRequest(session_id=await self.session(), follow=True)))
        await anext(frames)
        return frames


class BareIdleWatches(IdleWatches):
    """The same from the bare server."""

    async def _begin(self) -> AsyncIterator[Any]:
        events = aiter(self.idle(v1.WatchSessionRequest()))
        await anext(events)
        return events


class IdleSessions(Scenario):
    """Sessions that had a turn and are left alone: each round makes so many more."""

    def __init__(self, address: str, sessions: int) -> None:
        super().__init__(address)
        self._sessions = sessions

    async def run(self) -> Measured:
        """Make the sessions and hold a turn in each."""
        begin = time.perf_counter()
        for _ in range(self._sessions):
            await self.turns.SendMessage(v1.SendMessageRequest(start=say(await self.session(), "hello")))
        return {"count": self._sessions, "seconds": time.perf_counter() - begin}
