"""karta-runtime: the server's command line. Imports no more than it needs to say what it can do."""

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from karta_server.config import Config
    from karta_server.errors import KartaError

# As in sysexits.h, so that scripts can tell.
EXIT_FAILED = 70
EXIT_IN_USE = 75
EXIT_CONFIG = 78

_LAZY = {"dev": ("karta_server.dev:dev", "Talk to the project's agents, here in the terminal.")}

_EPILOG = """\b
Examples:
  karta-runtime dev                       a conversation, in this folder
  karta-runtime dev-serve --listen 127.0.0.1:0
  karta-runtime doctor                    what is installed, and what is missing
"""


class _LazyGroup(click.Group):
    """Commands that are imported when they are called, and listed without it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module, _, name = _LAZY[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        helps = {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        helps |= {name: text for name, (_, text) in _LAZY.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(helps.items()))


@click.group(cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="karta-grpc", prog_name="karta-runtime")
def main() -> None:
    """Karta runs the agents of a project folder and serves them over gRPC.

    The agents are those of a coding-agent harness that you have already, such
    as Claude Code: its .claude/agents/*.md, its login, its settings. `kartactl`
    and the Python package are clients of the server that starts here.
    """


def _show_settings(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from karta_server import settings

        click.echo(settings.table())
        ctx.exit()


_project = click.argument("project", default=".", metavar="[PATH]", type=click.Path(path_type=Path))
_state = click.option("--state", metavar="DIR", help="Folder of the server's state.  [default: PATH/.karta]")


@main.command("dev-serve", short_help="Serve a project folder on this machine.")
@_project
@click.option("--listen", metavar="HOST:PORT", help="Loopback address, or unix:/path.  [default: 127.0.0.1:7400]")
@_state
@click.option("--harness", metavar="NAME", help="What runs the agents.  [default: found out from the project]")
@click.option("--agent", metavar="NAME", help="Agent of sessions that name none.  [default: the harness's own]")
@click.option("--embedded", is_flag=True, hidden=True, help="End with the last user of the hold socket.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [default: info]")
@click.option(
    "--settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_settings,
    help="Show every setting of karta.jsonc and the environment.",
)
def dev_serve(project: Path, **flags: Any) -> None:
    """Serve the project in PATH, the current folder by default.

    When it serves, it prints one line with the address; the log goes to
    stderr. Only programs on this machine can reach it: there is no
    authentication yet. Ctrl-C lets running turns finish for a while; a second
    one stops them.

    \b
    Examples:
      karta-runtime dev-serve
      karta-runtime dev-serve ~/shop --listen 127.0.0.1:0 --harness claude_code
      karta-runtime dev-serve --listen unix:/tmp/shop.sock

    Settings may also stand in PATH/karta.jsonc, or in the environment as
    KARTA_<NAME>; --settings shows them all.
    """
    config = _loaded(project, **flags)
    _log_to_stderr(config)
    import asyncio

    from karta_server.errors import KartaError
    from karta_server.hosting import host

    def announce(address: str, harness: str) -> None:
        _announce(f"karta-runtime serving on {address} (project {config.project}, harness {harness or 'none'})")

    try:
        asyncio.run(host(config, announce))
    except KartaError as error:
        _end(error)


@main.command(short_help="Say what is installed, found and missing.")
@_project
@_state
@click.option("--output", type=click.Choice(["text", "json"]), default="text", help="How to say it.")
def doctor(project: Path, state: str | None, output: str) -> None:
    """Say whether sessions could run in PATH, and if not, how to mend it.

    Exit code 0 when a session could run, else 1. Changes nothing.

    \b
    Examples:
      karta-runtime doctor
      karta-runtime doctor ~/shop --output json
    """
    from karta_server.doctor import examine, ready, report

    findings = examine(project, state)
    click.echo(report(findings, output))
    sys.exit(0 if ready(findings) else 1)


@main.command(short_help="Show, and with --apply change, the version of the database's schema.")
@_project
@_state
@click.option("--apply", is_flag=True, help="Bring the database up to date.")
def migrate(project: Path, state: str | None, apply: bool) -> None:
    """Show which schema the database of PATH has, and which one this version has.

    A server brings its database up to date when it starts; this is for those
    who want to see it first, or do it apart. No server may have the database
    meanwhile.

    \b
    Examples:
      karta-runtime migrate
      karta-runtime migrate ~/shop --apply
    """
    config = _loaded(project, state=state)
    from karta_server.errors import KartaError
    from karta_server.storage.lock import StateLock
    from karta_server.storage.sql.schema import current_and_head, upgrade

    database = config.state / "karta.db"
    try:
        if apply:
            from karta_server.hosting import prepare_folder

            prepare_folder(config.state)
            with StateLock(config.state):
                upgrade(database)
        current, head = current_and_head(database)
    except KartaError as error:
        _end(error)
    click.echo(f"database  {database}\ncurrent   {current or 'none yet'}\nhead      {head}")
    if current != head:
        click.echo("Run `karta-runtime migrate --apply`, or start a server, to bring it up to date.")


def _loaded(project: Path, **flags: Any) -> "Config":
    from karta_server.config import load
    from karta_server.errors import KartaError

    try:
        return load(project, **flags)
    except KartaError as error:
        _end(error)


def _end(error: "KartaError") -> NoReturn:
    """Say why on stderr and exit with the code that fits."""
    from karta import v1

    codes: dict[int, int] = {
        v1.ERROR_REASON_STATE_DIRECTORY_IN_USE: EXIT_IN_USE,
        v1.ERROR_REASON_CONFIG_INVALID: EXIT_CONFIG,
        v1.ERROR_REASON_ADDRESS_REFUSED: EXIT_CONFIG,
    }
    click.echo(f"karta-runtime: {error.message}", err=True)
    sys.exit(codes.get(error.reason, EXIT_FAILED))


def _log_to_stderr(config: "Config") -> None:
    import logging

    logging.basicConfig(
        stream=sys.stderr,
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )


def _announce(line: str) -> None:
    # Who started an embedded server may be gone already: its hold socket will notice.
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)  # noqa: T201
    # One line is the promise: what a library prints later goes to the log.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main(prog_name="karta-runtime")
