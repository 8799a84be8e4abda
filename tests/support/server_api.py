"""The stubs of a server under test, and the calls that tests make again and again."""

import json
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from karta import v1
from karta.v1.agent_service_pb2_grpc import AgentServiceStub
from karta.v1.input_service_pb2_grpc import InputServiceStub
from karta.v1.server_service_pb2_grpc import ServerServiceStub
from karta.v1.session_service_pb2_grpc import SessionServiceStub
from karta.v1.turn_service_pb2_grpc import TurnServiceStub


class Api:
    """A server's stubs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.sessions = SessionServiceStub(channel)
        self.turns = TurnServiceStub(channel)
        self.inputs = InputServiceStub(channel)
        self.agents = AgentServiceStub(channel)
        self.server = ServerServiceStub(channel)

    async def create(self, **fields: Any) -> v1.Session:
        return (await self.sessions.CreateSession(v1.CreateSessionRequest(**fields))).session

    async def start(self, session: v1.Session, text: str, **fields: Any) -> v1.Turn:
        return (await self.turns.StartTurn(say(session, text, **fields))).turn

    async def send(self, session: v1.Session, text: str, **fields: Any) -> v1.Turn:
        request = v1.SendMessageRequest(start=say(session, text, **fields))
        return (await self.turns.SendMessage(request)).turn

    async def wait(self, turn: v1.Turn) -> v1.Turn:
        request = v1.WaitTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
        return (await self.turns.WaitTurn(request)).turn

    async def get(self, turn: v1.Turn) -> v1.Turn:
        request = v1.GetTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
        return (await self.turns.GetTurn(request)).turn

    async def cancel(self, turn: v1.Turn, **fields: Any) -> v1.Turn:
        request = v1.CancelTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id, **fields)
        return (await self.turns.CancelTurn(request)).turn

    async def events(self, session: v1.Session, **fields: Any) -> list[v1.Event]:
        request = v1.WatchSessionRequest(session_id=session.session_id, **fields)
        return [event async for frame in self.sessions.WatchSession(request) for event in frame.events]

    async def pending(self, session: v1.Session) -> list[v1.InputRequest]:
        request = v1.ListInputRequestsRequest(session_id=session.session_id)
        return list((await self.inputs.ListInputRequests(request)).input_requests)

    async def respond(self, request: v1.InputRequest, **response: Any) -> v1.InputRequest:
        answer = v1.RespondToInputRequest(
            input_request_id=request.input_request_id, response=v1.InputResponse(**response)
        )
        return (await self.inputs.RespondToInput(answer)).input_request


def say(session: v1.Session, text: str, **fields: Any) -> v1.StartTurnRequest:
    message = v1.Message(parts=[v1.Part(text=text)])
    return v1.StartTurnRequest(session_id=session.session_id, message=message, **fields)


def script(*calls: list[dict[str, Any]]) -> str:
    return f"SCRIPT:{json.dumps(list(calls))}END"


def kinds(events: list[v1.Event]) -> list[str]:
    return [event.WhichOneof("kind") or "" for event in events]


class Refused:
    """The failure that a block must bring: code and reason, then `metadata` for more."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        self._expected = code, reason
        self.metadata: dict[str, str] = {}
        self.message = ""

    def __enter__(self) -> "Refused":
        return self

    def __exit__(self, kind: object, error: object, _: object) -> bool:
        assert isinstance(error, grpc.aio.AioRpcError), f"expected {self._expected}, got {error!r}"
        details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
        info = error_details_pb2.ErrorInfo()
        assert status_pb2.Status.FromString(details).details[0].Unpack(info)
        assert (error.code(), info.reason) == self._expected, error.details()
        assert info.domain == "karta.sh"
        self.metadata = dict(info.metadata)
        self.message = error.details() or ""
        return True
