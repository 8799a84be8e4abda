"""Agents of the project and the harnesses that run them."""

from collections.abc import Mapping

from karta import v1
from karta_server.core import checks
from karta_server.core.caller import Caller
from karta_server.errors import KartaError
from karta_server.harness.contract import HarnessAdapter


class KnownAgents:
    """The names of a harness's agents at one moment."""

    def __init__(self, names: frozenset[str] | None) -> None:
        self._names = names

    def require(self, name: str) -> None:
        """Refuse a name that is not known; the empty name means the default."""
        if name and self._names is not None and name not in self._names:
            known = ", ".join(sorted(self._names)) or "none"
            raise KartaError(
                v1.ERROR_REASON_AGENT_NOT_FOUND,
                f"There is no agent {name!r}. Known agents: {known}.",
                agent=name[:128],
                known=known,
            )


class Agents:
    """What can answer turns on this server."""

    def __init__(self, adapters: Mapping[str, HarnessAdapter], default_harness: str, default_agent: str) -> None:
        self._adapters = adapters
        self.default_harness = default_harness
        self.default_agent = default_agent

    def adapter(self, harness: str) -> HarnessAdapter:
        """Return the adapter of a harness, of the default one when the name is empty."""
        name = harness or self.default_harness
        if name not in self._adapters:
            known = ", ".join(sorted(self._adapters))
            raise KartaError(
                v1.ERROR_REASON_HARNESS_NOT_FOUND,
                f"There is no harness {name!r}. Known harnesses: {known}.",
                harness=name[:128],
                known=known,
            )
        return self._adapters[name]

    async def usable_harness(self, harness: str) -> str:
        """Return the name of a harness that sessions can use, or raise HARNESS_NOT_INSTALLED."""
        adapter = self.adapter(harness)
        description = await adapter.describe()
        if not description.available:
            raise KartaError(
                v1.ERROR_REASON_HARNESS_NOT_INSTALLED, description.unavailable_reason, harness=adapter.name
            )
        return adapter.name

    async def known(self, harness: str, *names: str) -> KnownAgents:
        """Return the agents of a harness; nothing is read when no name is to be checked."""
        if not any(names):
            return KnownAgents(None)
        return KnownAgents(frozenset(agent.name for agent in await self.adapter(harness).agents()))

    async def list_agents(self, caller: Caller, request: v1.ListAgentsRequest) -> v1.ListAgentsResponse:
        """Return the project's agents by name."""
        checks.tenant(caller, request.tenant_id)
        return v1.ListAgentsResponse(agents=await self._list(request.harness))

    async def get(self, caller: Caller, request: v1.GetAgentRequest) -> v1.GetAgentResponse:
        """Return one agent."""
        checks.tenant(caller, request.tenant_id)
        checks.required("name", request.name)
        agents = await self._list(request.harness)
        KnownAgents(frozenset(agent.name for agent in agents)).require(request.name)
        return v1.GetAgentResponse(agent=next(agent for agent in agents if agent.name == request.name))

    async def harnesses(self) -> v1.ListHarnessesResponse:
        """Return every harness by name, installed or not."""
        harnesses = []
        for name in sorted(self._adapters):
            description = await self._adapters[name].describe()
            description.is_default = name == self.default_harness
            harnesses.append(description)
        return v1.ListHarnessesResponse(harnesses=harnesses)

    async def _list(self, harness: str) -> list[v1.Agent]:
        agents = sorted(await self.adapter(harness).agents(), key=lambda agent: agent.name)
        for agent in agents:
            agent.is_default = agent.name == self.default_agent
        return agents
