"""Clients that keep a server busy until it is gone, and write down what they learn."""

import asyncio
import itertools
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from knowledge import Known, Sent
from server_api import Api, say, script

from karta import v1

TURNS_A_SESSION = 6
NEW_SESSIONS = 4
_BASH = {"tool": "Bash", "input": {"command": "date"}}
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# What one client may hear because of what another one did.
_EXPECTED = {"INPUT_ALREADY_RESOLVED", "QUEUE_FULL"}
_EXPECTED_IN_DELETION = {"SESSION_NOT_FOUND", "TURN_NOT_FOUND", "INPUT_REQUEST_NOT_FOUND"}


class ServerGoneError(Exception):
    """The server does not answer any more."""


def reason(error: grpc.aio.AioRpcError) -> str:
    """Return the reason of a failed call, "" when it has none."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    info = error_details_pb2.ErrorInfo()
    if details is not None:
        status_pb2.Status.FromString(details).details[0].Unpack(info)
    return info.reason


class Caller:
    """Calls of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.api = Api(channel)
        # Bytes and not messages, to compare what came and not what it was taken for.
        self.watch = channel.unary_stream(
            "/karta.v1.SessionService/WatchSession", request_serializer=v1.WatchSessionRequest.SerializeToString
        )
        self.run = channel.unary_stream(
            "/karta.v1.TurnService/RunTurn", request_serializer=v1.RunTurnRequest.SerializeToString
        )

    async def send(self, sent: Sent) -> None:
        """Send a request, for the first time or again."""
        methods = {
            "create": self.api.sessions.CreateSession,
            "start": self.api.turns.StartTurn,
            "respond": self.api.inputs.RespondToInput,
            "cancel": self.api.turns.CancelTurn,
            "delete": self.api.sessions.DeleteSession,
        }
        sent.answered(await methods[sent.kind](sent.request))

    async def log(self, session_id: str, after: int = 0) -> list[bytes]:
        """Return frames of a session's log as it is."""
        return [
            frame async for frame in self.watch(v1.WatchSessionRequest(session_id=session_id, after_sequence=after))
        ]


class Load:
    """The clients of one life of a server."""

    def __init__(self, rng: random.Random, caller: Caller, creations: list[Sent], known: dict[str, Known]) -> None:
        self._rng = rng
        self._caller = caller
        self._creations = creations
        self._known = known
        self._numbers = itertools.count()
        self._life = uuid.UUID(int=rng.getrandbits(128)).hex[:12]
        self.busy = asyncio.Event()
        """Set when a first event has come."""

    async def run(self) -> None:
        """Keep the server busy until it is gone. Raises what no client should see."""
        old = [known for known in self._known.values() if not known.deleting]
        again = self._rng.sample(old, min(len(old), 2))
        sessions = [self._session(known) for known in again]
        async with asyncio.TaskGroup() as group:
            for work in [*sessions, *(self._new_session() for _ in range(NEW_SESSIONS))]:
                group.create_task(self._until_gone(work))

    async def _new_session(self) -> None:
        sent = Sent("create", v1.CreateSessionRequest(request_id=self._id(), metadata={"marker": self._id()}))
        self._creations.append(sent)
        await self._twice(sent)
        session_id = sent.answer.session.session_id  # type: ignore[union-attr]
        await self._session(self._known.setdefault(session_id, Known(session_id)))

    async def _session(self, known: Known) -> None:
        works = [self._watch(known), self._watch(known), self._approve(known), self._start_turns(known)]
        if self._rng.random() < 0.15:
            works.append(self._delete(known))
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(self._until_gone(work, known))

    async def _start_turns(self, known: Known) -> None:
        for _ in range(TURNS_A_SESSION):
            marker = self._id()
            request = say(v1.Session(session_id=known.session_id), f"{marker} {self._script()}", request_id=self._id())
            sent = Sent("start", request, marker)
            known.sent.append(sent)
            if self._rng.random() < 0.4:
                async for frame in self._caller.run(v1.RunTurnRequest(start=request)):
                    known.see(frame)
            else:
                await self._twice(sent, known)
                if sent.answer is not None and self._rng.random() < 0.15:
                    await self._cancel(known, sent.answer.turn)
            await self._pause(0.06)

    async def _cancel(self, known: Known, turn: v1.Turn) -> None:
        await self._pause(0.03)
        request = v1.CancelTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id, request_id=self._id())
        known.sent.append(Sent("cancel", request))
        await self._caller.send(known.sent[-1])

    async def _approve(self, known: Known) -> None:
        stream = self._caller.api.inputs.WatchInputRequests(v1.WatchInputRequestsRequest(session_id=known.session_id))
        async for frame in stream:
            for pending in frame.input_requests:
                if pending.state != v1.INPUT_STATE_PENDING:
                    continue
                await self._pause(0.03)
                response = v1.InputResponse(allow=v1.Allow())
                if self._rng.random() < 0.3:
                    response = v1.InputResponse(deny=v1.Deny(message="no"))
                request = v1.RespondToInputRequest(
                    input_request_id=pending.input_request_id, response=response, request_id=self._id()
                )
                known.sent.append(Sent("respond", request))
                await self._twice(known.sent[-1], known)

    async def _watch(self, known: Known) -> None:
        while True:
            after = self._rng.choice([0, max(known.seen, default=0), self._rng.choice([0, *known.seen])])
            request = v1.WatchSessionRequest(session_id=known.session_id, after_sequence=after, follow=True)
            stream = self._caller.watch(request)
            expected = after + 1
            for _ in range(self._rng.randint(1, 40)):
                frame = await stream.read()
                if frame is grpc.aio.EOF:
                    await stream.code()
                    raise ServerGoneError
                expected = (known.see(frame, expected) or expected - 1) + 1
                self.busy.set()
            stream.cancel()

    async def _delete(self, known: Known) -> None:
        await self._pause(0.5)
        known.deleting = True
        request = v1.DeleteSessionRequest(session_id=known.session_id, request_id=self._id())
        known.sent.append(Sent("delete", request))
        await self._caller.send(known.sent[-1])

    async def _twice(self, sent: Sent, known: Known | None = None) -> None:
        """Send a request, sometimes two times at once, as a client does that gave up too early."""
        times = 2 if self._rng.random() < 0.3 else 1
        results = await asyncio.gather(*(self._caller.send(sent) for _ in range(times)), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                self._judge(result, known)

    async def _until_gone(self, work: Awaitable[None], known: Known | None = None) -> None:
        try:
            await work
        except ServerGoneError:
            pass
        except BaseExceptionGroup:
            raise
        except Exception as error:
            self._judge(error, known, ends=True)

    def _judge(self, error: BaseException, known: Known | None, *, ends: bool = False) -> None:
        """Raise what is not to be: that the server is gone, or that others were first, is."""
        if not isinstance(error, grpc.aio.AioRpcError):
            raise error
        allowed = _EXPECTED | (_EXPECTED_IN_DELETION if known is not None and known.deleting else set())
        if error.code() in _GONE and not reason(error):
            if not ends:
                raise ServerGoneError
        elif reason(error) not in allowed:
            raise error

    def _script(self) -> str:
        kinds: list[Callable[[], list[list[dict[str, Any]]]]] = [
            lambda: [[{"text": "a b c d e"}]],
            lambda: [[{"text": "word " * 20, "pace": 0.004}]],
            lambda: [[{"think": "hm " * 5, "pace": 0.002}, {"text": "x" * 5000}]],
            lambda: [[_BASH], [{"text": "done"}]],
            lambda: [[_BASH, {"tool": "Read"}, _BASH], [{"text": "done and done", "pace": 0.002}]],
            lambda: [[{"tool": "Read"}, {"delay": 0.5}, {"text": "late"}]],
            lambda: [[{"text": "so far"}], [{"error": 529}]],
        ]
        return script(*self._rng.choice(kinds)())

    def _id(self) -> str:
        return f"{self._life}-{next(self._numbers)}"

    async def _pause(self, most_seconds: float) -> None:
        await asyncio.sleep(self._rng.uniform(0, most_seconds))
