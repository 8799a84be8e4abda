"""karta.v1.AgentService."""

from typing import Any

from karta import v1
from karta.v1.agent_service_pb2_grpc import AgentServiceServicer
from karta_server.core.agents import Agents
from karta_server.interceptors.caller import caller


class AgentService(AgentServiceServicer):
    """Checks the request, calls core, returns the message."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def ListAgents(self, request: v1.ListAgentsRequest, context: Any) -> v1.ListAgentsResponse:
        return await self._agents.list_agents(caller(), request)

    async def GetAgent(self, request: v1.GetAgentRequest, context: Any) -> v1.GetAgentResponse:
        return await self._agents.get(caller(), request)

    async def ListHarnesses(self, request: v1.ListHarnessesRequest, context: Any) -> v1.ListHarnessesResponse:
        return await self._agents.harnesses()
