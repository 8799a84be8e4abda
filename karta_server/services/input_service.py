"""karta.v1.InputService."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from karta import v1
from karta.v1.input_service_pb2_grpc import InputServiceServicer
from karta_server.core import checks
from karta_server.core.inputs import Inputs
from karta_server.core.sessions import Sessions
from karta_server.interceptors.caller import caller
from karta_server.services.frames import heartbeat_seconds
from karta_server.storage.contract import SessionKey


class InputService(InputServiceServicer):
    """Checks the request, calls core, returns the message."""

    def __init__(self, inputs: Inputs, sessions: Sessions, default_heartbeat_seconds: float) -> None:
        self._inputs = inputs
        self._sessions = sessions
        self._heartbeat_seconds = default_heartbeat_seconds

    async def GetInputRequest(self, request: v1.GetInputRequestRequest, context: Any) -> v1.GetInputRequestResponse:
        return await self._inputs.get(caller(), request)

    async def ListInputRequests(
        self, request: v1.ListInputRequestsRequest, context: Any
    ) -> v1.ListInputRequestsResponse:
        return await self._inputs.page(caller(), request)

    async def RespondToInput(self, request: v1.RespondToInputRequest, context: Any) -> v1.RespondToInputResponse:
        return await self._inputs.respond(caller(), request)

    async def WatchInputRequests(
        self, request: v1.WatchInputRequestsRequest, context: Any
    ) -> AsyncGenerator[v1.WatchInputRequestsResponse, None]:
        tenant_id = checks.tenant(caller(), request.tenant_id)
        if request.session_id:
            await self._sessions.get(SessionKey(tenant_id, request.session_id))
        interval = request.heartbeat_interval if request.HasField("heartbeat_interval") else None
        idle_seconds = heartbeat_seconds(interval, self._heartbeat_seconds)
        async with aclosing(self._inputs.watch(tenant_id, request.session_id, idle_seconds)) as batches:
            async for batch in batches:
                yield v1.WatchInputRequestsResponse(input_requests=batch)
