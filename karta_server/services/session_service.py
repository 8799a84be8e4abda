"""karta.v1.SessionService."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from karta import v1
from karta.v1.session_service_pb2_grpc import SessionServiceServicer
from karta_server.core import checks
from karta_server.core.participants import Participants
from karta_server.core.session_log import SessionLog
from karta_server.core.sessions import Sessions
from karta_server.interceptors.caller import caller
from karta_server.services.frames import heartbeat_seconds, session_frames
from karta_server.storage.contract import SessionKey


class SessionService(SessionServiceServicer):
    """Checks the request, calls core, returns the message."""

    def __init__(
        self, sessions: Sessions, participants: Participants, log: SessionLog, default_heartbeat_seconds: float
    ) -> None:
        self._sessions = sessions
        self._participants = participants
        self._log = log
        self._heartbeat_seconds = default_heartbeat_seconds

    async def CreateSession(self, request: v1.CreateSessionRequest, context: Any) -> v1.CreateSessionResponse:
        return await self._sessions.create(caller(), request)

    async def GetSession(self, request: v1.GetSessionRequest, context: Any) -> v1.GetSessionResponse:
        key = SessionKey(checks.tenant(caller(), request.tenant_id), request.session_id)
        return v1.GetSessionResponse(session=await self._sessions.get(key))

    async def ListSessions(self, request: v1.ListSessionsRequest, context: Any) -> v1.ListSessionsResponse:
        return await self._sessions.page(caller(), request)

    async def UpdateSession(self, request: v1.UpdateSessionRequest, context: Any) -> v1.UpdateSessionResponse:
        return await self._sessions.update(caller(), request)

    async def DeleteSession(self, request: v1.DeleteSessionRequest, context: Any) -> v1.DeleteSessionResponse:
        return await self._sessions.delete(caller(), request)

    async def AddParticipant(self, request: v1.AddParticipantRequest, context: Any) -> v1.AddParticipantResponse:
        return await self._participants.add(caller(), request)

    async def UpdateParticipant(
        self, request: v1.UpdateParticipantRequest, context: Any
    ) -> v1.UpdateParticipantResponse:
        return await self._participants.update(caller(), request)

    async def RemoveParticipant(
        self, request: v1.RemoveParticipantRequest, context: Any
    ) -> v1.RemoveParticipantResponse:
        return await self._participants.remove(caller(), request)

    async def WatchSession(  # type: ignore[override]  # yields the bytes of WatchSessionResponse
        self, request: v1.WatchSessionRequest, context: Any
    ) -> AsyncGenerator[bytes, None]:
        key = SessionKey(checks.tenant(caller(), request.tenant_id), request.session_id)
        checks.uuid("session_id", request.session_id)
        interval = request.heartbeat_interval if request.HasField("heartbeat_interval") else None
        frames = session_frames(
            self._log,
            key,
            request.after_sequence,
            checks.event_kinds(request.kinds),
            follow=request.follow,
            idle_seconds=heartbeat_seconds(interval, self._heartbeat_seconds),
        )
        async with aclosing(frames):
            async for frame in frames:
                yield frame
