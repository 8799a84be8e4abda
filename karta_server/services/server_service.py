"""karta.v1.ServerService."""

from typing import Any

from karta import v1
from karta.v1.server_service_pb2_grpc import ServerServiceServicer


class ServerService(ServerServiceServicer):
    """Tells what the server is."""

    def __init__(self, info: v1.ServerInfo) -> None:
        self._info = info

    async def GetServerInfo(self, request: v1.GetServerInfoRequest, context: Any) -> v1.GetServerInfoResponse:
        return v1.GetServerInfoResponse(server=self._info)
