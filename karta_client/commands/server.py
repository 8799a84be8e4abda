"""server: the server itself."""

from typing import TYPE_CHECKING

import click

from karta import v1
from karta_client import calls
from karta_client.commands import output
from karta_client.commands.invocation import Group, Invocation, pass_invocation

if TYPE_CHECKING:
    from karta_client.connection import Connection


@click.group(
    cls=Group,
    epilog="""\
\b
Examples:
  kartactl server info
  kartactl server info --target 127.0.0.1:7400 -o json | jq .limits""",
)
def server() -> None:
    """The server itself."""


@server.command("info")
@pass_invocation
def info(invocation: Invocation) -> int:
    """Show what the server is, and what it refuses to exceed."""

    async def command(connection: "Connection") -> None:
        found = (await connection.call(calls.server_info())).server
        values = [("address", connection.address), *_fields(found)]
        output.one(invocation.output, found, lambda: output.fields(values))

    return invocation.run(command)


def _fields(found: v1.ServerInfo) -> list[tuple[str, object]]:
    limits = [(field.name.replace("_", " "), value) for field, value in found.limits.ListFields()]
    return [
        ("version", found.version),
        ("instance", found.instance_id),
        ("default harness", found.default_harness),
        ("heartbeat", f"{found.heartbeat_interval.ToMilliseconds() / 1000:g} s"),
        *limits,
    ]
