"""karta.v1.TurnService."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf import duration_pb2

from karta import v1
from karta.v1.turn_service_pb2_grpc import TurnServiceServicer
from karta_server.core import checks
from karta_server.core.session_log import SessionLog
from karta_server.core.turns import Turns
from karta_server.interceptors.caller import caller
from karta_server.services.conversation import Conversations
from karta_server.services.frames import heartbeat_seconds, turn_frames
from karta_server.storage.contract import SessionKey

_MAX_WAIT_SECONDS = 3600.0


class TurnService(TurnServiceServicer):
    """Checks the request, calls core, returns the message."""

    def __init__(
        self, turns: Turns, log: SessionLog, conversations: Conversations, default_heartbeat_seconds: float
    ) -> None:
        self._turns = turns
        self._log = log
        self._conversations = conversations
        self._heartbeat_seconds = default_heartbeat_seconds

    async def StartTurn(self, request: v1.StartTurnRequest, context: Any) -> v1.StartTurnResponse:
        return v1.StartTurnResponse(turn=await self._turns.start(caller(), request))

    async def RunTurn(  # type: ignore[override]  # yields the bytes of RunTurnResponse
        self, request: v1.RunTurnRequest, context: Any
    ) -> AsyncGenerator[bytes, None]:
        kinds = checks.event_kinds(request.kinds)
        checks.uuid("session_id", request.start.session_id)
        interval = request.heartbeat_interval if request.HasField("heartbeat_interval") else None
        idle_seconds = heartbeat_seconds(interval, self._heartbeat_seconds)
        key = SessionKey(checks.tenant(caller(), request.start.tenant_id), request.start.session_id)
        # The cursor is there before the turn, so that the turn's events need not be read from the store.
        async with self._log.watch(key, 0) as cursor:
            turn = await self._turns.start(caller(), request.start)
            cursor.position = turn.first_sequence - 1
            async with aclosing(turn_frames(cursor, turn, kinds, idle_seconds)) as frames:
                async for frame in frames:
                    yield frame

    async def WatchTurn(  # type: ignore[override]  # yields the bytes of WatchTurnResponse
        self, request: v1.WatchTurnRequest, context: Any
    ) -> AsyncGenerator[bytes, None]:
        kinds = checks.event_kinds(request.kinds)
        key = SessionKey(checks.tenant(caller(), request.tenant_id), request.session_id)
        interval = request.heartbeat_interval if request.HasField("heartbeat_interval") else None
        idle_seconds = heartbeat_seconds(interval, self._heartbeat_seconds)
        turn = await self._turns.get(key, request.turn_id)
        after = max(request.after_sequence, turn.first_sequence - 1)
        async with (
            self._log.watch(key, after) as cursor,
            aclosing(turn_frames(cursor, turn, kinds, idle_seconds)) as frames,
        ):
            async for frame in frames:
                yield frame

    async def WaitTurn(self, request: v1.WaitTurnRequest, context: Any) -> v1.WaitTurnResponse:
        key = SessionKey(checks.tenant(caller(), request.tenant_id), request.session_id)
        timeout = request.timeout if request.HasField("timeout") else None
        turn = await self._turns.wait(key, request.turn_id, _wait_seconds(timeout))
        return v1.WaitTurnResponse(turn=turn)

    async def SendMessage(self, request: v1.SendMessageRequest, context: Any) -> v1.SendMessageResponse:
        seconds = _wait_seconds(request.timeout if request.HasField("timeout") else None)
        return v1.SendMessageResponse(turn=await self._turns.send(caller(), request.start, seconds))

    async def GetTurn(self, request: v1.GetTurnRequest, context: Any) -> v1.GetTurnResponse:
        key = SessionKey(checks.tenant(caller(), request.tenant_id), request.session_id)
        return v1.GetTurnResponse(turn=await self._turns.get(key, request.turn_id))

    async def ListTurns(self, request: v1.ListTurnsRequest, context: Any) -> v1.ListTurnsResponse:
        return await self._turns.page(caller(), request)

    async def CancelTurn(self, request: v1.CancelTurnRequest, context: Any) -> v1.CancelTurnResponse:
        return v1.CancelTurnResponse(turn=await self._turns.cancel(caller(), request))

    async def Converse(  # type: ignore[override]  # yields the bytes of ConverseResponse
        self, request_iterator: AsyncIterator[v1.ConverseRequest], context: Any
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._conversations.converse(caller(), request_iterator)) as frames:
            async for frame in frames:
                yield frame


def _wait_seconds(timeout: duration_pb2.Duration | None) -> float:
    if timeout is None:
        return _MAX_WAIT_SECONDS
    return checks.seconds("timeout", timeout, 0, _MAX_WAIT_SECONDS)
