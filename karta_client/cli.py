"""kartactl: Karta's command line. Imports no more than it needs to say what it can do."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from karta_client import __version__
from karta_client.commands import exits
from karta_client.commands.invocation import Invocation, LazyGroup, OutputClosedError, global_options

_COMMANDS = "karta_client.commands."
_LAZY = {
    "send": (_COMMANDS + "talk:send", "Send a message and print the answer."),
    "stream": (_COMMANDS + "talk:stream", "Send a message and stream what happens."),
    "chat": (_COMMANDS + "talk:chat", "Hold a conversation."),
    "sessions": (_COMMANDS + "sessions:sessions", "Sessions: list, create, hand off, watch, archive, delete."),
    "turns": (_COMMANDS + "turns:turns", "Turns: list, wait, watch, cancel."),
    "inputs": (_COMMANDS + "inputs:inputs", "Approvals and questions: list, watch, respond."),
    "agents": (_COMMANDS + "agents:agents", "Agents of the project."),
    "harnesses": (_COMMANDS + "agents:harnesses", "Programs that run agents."),
    "server": (_COMMANDS + "server:server", "The server itself."),
}


class Kartactl(LazyGroup):
    """The root command: turns every way to end into an exit code and a readable error."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command line; always ends with SystemExit."""
        invocation = Invocation()
        extra |= {"prog_name": "kartactl", "obj": invocation, "standalone_mode": False}
        sys.exit(_guarded(lambda: super(Kartactl, self).main(args, *rest, **extra), invocation))


def _guarded(run: Any, invocation: Invocation) -> int:
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else exits.OK
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return exits.USAGE
    except click.UsageError as error:
        return _usage(error, invocation.output)
    except (KeyboardInterrupt, click.Abort):
        return exits.INTERRUPTED
    except OutputClosedError:
        # What is still buffered has no reader; without this, Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.BROKEN_PIPE
    except Exception as error:
        failure, status = exits.describe(error)
        exits.report(invocation.output, failure, status)
        return failure.exit_code


def _usage(error: click.UsageError, output: str) -> int:
    if output == "text":
        error.show()
    else:
        exits.report(output, exits.CommandError(exits.USAGE, "USAGE", error.format_message()))
    return exits.USAGE


@click.group(
    cls=Kartactl,
    lazy=_LAZY,
    params=global_options(root=True),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"""\
\b
Examples:
  kartactl send "What does this project do?"
  git diff | kartactl stream - --metadata task=review
  kartactl stream "Tidy up" --output jsonl | jq -r 'select(.text).text.text'
  kartactl inputs list
  kartactl sessions watch SESSION --after 0 --follow

{exits.TABLE}""",
)
@click.version_option(__version__, prog_name="kartactl")
def cli() -> None:
    """Talk to agents, and look after their sessions, from the command line.

    In a project's folder nothing needs to be configured: the folder's server is
    joined, or started for as long as the command runs.
    """


def main() -> None:
    """Run kartactl; the entry point of the script."""
    cli()


if __name__ == "__main__":
    main()
