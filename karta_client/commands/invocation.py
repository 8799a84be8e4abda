"""What all commands share: the global options before or after the command's name, lazy groups, the connection."""

import importlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from karta_client.commands import exits

if TYPE_CHECKING:
    from karta_client.connection import Connection


class OutputClosedError(Exception):
    """Nobody reads the output any more."""


@dataclass
class Invocation:
    """One run of kartactl: its global options."""

    target: str | None = None
    project: str | None = None
    output: str = "text"
    quiet: bool = False

    def run(self, command: Callable[["Connection"], Awaitable[int | None]]) -> int:
        """Run a command with a connection; return its exit code, 0 for None. Raises OutputClosedError."""
        import asyncio

        try:
            return asyncio.run(self._connected(command))
        except BrokenPipeError:
            # click would take it for itself.
            raise OutputClosedError from None

    async def _connected(self, command: Callable[["Connection"], Awaitable[int | None]]) -> int:
        from karta_client.connection import open_connection

        connection = await open_connection(self.target, project=Path(self.project) if self.project else None)
        try:
            return await command(connection) or exits.OK
        finally:
            await connection.close()

    def server_ends_with_us(self) -> bool:
        """Return whether the server is one that was started for its users, and so may end with this command."""
        if self.target:
            return False
        try:
            record = json.loads((Path(self.project or ".") / ".karta" / "server.json").read_text())
            return bool(record["hold"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def hint(self, text: str) -> None:
        """Tell a person something beside the output, unless --quiet."""
        if not self.quiet:
            click.echo(text, err=True)


def _remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value is not None and param.name:
        setattr(ctx.ensure_object(Invocation), param.name, value)


def global_options(*, root: bool) -> list[click.Option]:
    """Make the options that every command takes. The environment counts at the root alone: a flag always wins."""
    given: dict[str, Any] = {"callback": _remember, "expose_value": False, "default": None}
    return [
        click.Option(
            ["--target"],
            metavar="ADDRESS",
            envvar="KARTA_TARGET" if root else None,
            help="HOST:PORT or unix:PATH of a server (or KARTA_TARGET). "
            "Default: the server of the project folder, started when there is none.",
            **given,
        ),
        click.Option(["--project"], metavar="PATH", help="The project folder. Default: this folder.", **given),
        click.Option(
            ["-o", "--output"],
            type=click.Choice(["text", "json", "jsonl"]),
            help="For people, one JSON document, or one JSON object a line.",
            **given,
        ),
        click.Option(["-q", "--quiet"], is_flag=True, help="No hints beside the output.", **given | {"default": None}),
    ]


class Command(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own_options = len(self.params)
        self.params.extend(global_options(root=False))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options apart from the global ones."""
        parts = (("Options", self.params[: self._own_options]), ("Global options", self.params[self._own_options :]))
        for title, params in parts:
            options = (param for param in params if isinstance(param, click.Option))
            records = [record for option in options if (record := option.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(click.Group):
    """A group whose commands take the global options."""

    command_class = Command
    group_class = type


class LazyGroup(Group):
    """A group that imports a command's module when the command is used."""

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy
        """By name: where the command is ("module:attribute"), and its help in a line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they were declared."""
        return [*self.commands, *self._lazy]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command."""
        if name not in self._lazy:
            return super().get_command(ctx, name)
        module, attribute = self._lazy[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        lines = {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        lines |= {name: line for name, (_, line) in self._lazy.items()}
        with formatter.section("Commands"):
            formatter.write_dl(list(lines.items()))


pass_invocation = click.make_pass_decorator(Invocation)


def pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Turn repeated key=value arguments into a dictionary."""
    parsed = {}
    for value in values:
        key, separator, rest = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{value!r} is not key=value", ctx, param)
        parsed[key] = rest
    return parsed
