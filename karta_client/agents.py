"""The agents of a project."""

from __future__ import annotations

from collections.abc import Iterable

from karta import v1
from karta_client.errors import NotFoundError


class Agents(dict[str, v1.Agent]):
    """Agents by name, as they were when asked for. Naming one that is not there raises NotFoundError."""

    def __init__(self, agents: Iterable[v1.Agent]) -> None:
        super().__init__((agent.name, agent) for agent in agents)

    def __missing__(self, name: str) -> v1.Agent:
        known = ", ".join(self) or "none"
        raise NotFoundError(
            f"There is no agent {name!r}; known: {known}.",
            reason="AGENT_NOT_FOUND",
            code="NOT_FOUND",
            metadata={"agent": name, "known": ",".join(self)},
        )


def agent_name(agent: v1.Agent | str | None) -> str:
    """Return the agent's name; empty for None, the default."""
    return agent.name if isinstance(agent, v1.Agent) else agent or ""
