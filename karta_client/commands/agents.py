"""agents and harnesses: who answers, and what runs them."""

from typing import TYPE_CHECKING

import click

from karta import v1
from karta_client import calls
from karta_client.calls import Call
from karta_client.commands import output
from karta_client.commands.invocation import Group, Invocation, pass_invocation
from karta_client.terminal import shorten

if TYPE_CHECKING:
    from karta_client.connection import Connection

_harness = click.option("--harness", default="", metavar="NAME", help="Default: the server's default harness.")


@click.group(
    cls=Group,
    epilog="""\
\b
Examples:
  kartactl agents list
  kartactl agents get billing-specialist -o json | jq .tools
  kartactl send "Where is my refund?" --agent billing-specialist""",
)
def agents() -> None:
    """Agents that the project defines in its harness's own format."""


@agents.command("list")
@_harness
@pass_invocation
def list_agents(invocation: Invocation, harness: str) -> int:
    """List the project's agents by name."""

    async def command(connection: "Connection") -> None:
        found = (await connection.call(calls.list_agents(harness))).agents
        output.many(invocation.output, "agents", found, ("AGENT", "MODEL", "DEFAULT", "DESCRIPTION"), _agent_row)

    return invocation.run(command)


@agents.command("get")
@click.argument("name")
@_harness
@pass_invocation
def get(invocation: Invocation, name: str, harness: str) -> int:
    """Show the agent NAME."""
    request = v1.GetAgentRequest(name=name, harness=harness)

    async def command(connection: "Connection") -> None:
        agent = (await connection.call(Call[v1.GetAgentResponse]("agents", "GetAgent", request))).agent
        output.one(invocation.output, agent, lambda: output.fields(_agent_fields(agent)))

    return invocation.run(command)


@click.group(
    cls=Group,
    epilog="""\
\b
Examples:
  kartactl harnesses list
  kartactl harnesses list -o json | jq '.harnesses[] | select(.available) | .name'""",
)
def harnesses() -> None:
    """Programs that run agents, installed or not."""


@harnesses.command("list")
@pass_invocation
def list_harnesses(invocation: Invocation) -> int:
    """List the harnesses that the server knows, and why one cannot be used."""

    async def command(connection: "Connection") -> None:
        call = Call[v1.ListHarnessesResponse]("agents", "ListHarnesses", v1.ListHarnessesRequest())
        found = (await connection.call(call)).harnesses
        output.many(
            invocation.output, "harnesses", found, ("HARNESS", "VERSION", "USABLE", "DEFAULT", "CAN"), _harness_row
        )

    return invocation.run(command)


def _agent_row(agent: v1.Agent) -> tuple[str, ...]:
    return (agent.name, agent.model, "yes" if agent.is_default else "", shorten(agent.description, 80))


def _agent_fields(agent: v1.Agent) -> list[tuple[str, object]]:
    return [
        ("agent", agent.name),
        ("description", agent.description),
        ("harness", agent.harness),
        ("model", agent.model),
        ("tools", ", ".join(agent.tools) or "all"),
        ("file", agent.path),
        ("default", "yes" if agent.is_default else ""),
    ]


def _harness_row(harness: v1.Harness) -> tuple[str, ...]:
    usable = "yes" if harness.available else f"no: {harness.unavailable_reason}"
    can = ", ".join(field.name for field, value in harness.capabilities.ListFields() if value)
    return (harness.name, harness.version, usable, "yes" if harness.is_default else "", can)
