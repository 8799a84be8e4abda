"""How kartactl ends: exit codes, and errors in one line or one JSON object."""

import json
import sys
from collections.abc import Mapping

from karta_client.cleaning import clean
from karta_client.errors import EmbeddedServerError, KartaError

OK = 0
TURN_FAILED = 1
USAGE = 2
NEEDS_INPUT = 3
NOT_FOUND = 4
REFUSED = 5
UNAVAILABLE = 6
INTERNAL = 70
INTERRUPTED = 130
BROKEN_PIPE = 141

TABLE = """\
\b
Exit codes:
  0    it worked
  1    the turn failed, was cancelled or was interrupted
  2    wrong usage
  3    the turn waits for an answer that nobody here can give
  4    not found: session, turn, input request, agent, harness
  5    refused: invalid, precondition, conflict, permission, limit
  6    unavailable, or the time ran out
  70   a defect
  130  Ctrl-C
  141  whoever read the output went away
"""

_OF_STATUS = {
    "NOT_FOUND": NOT_FOUND,
    "INVALID_ARGUMENT": REFUSED,
    "FAILED_PRECONDITION": REFUSED,
    "ALREADY_EXISTS": REFUSED,
    "ABORTED": REFUSED,
    "OUT_OF_RANGE": REFUSED,
    "PERMISSION_DENIED": REFUSED,
    "UNAUTHENTICATED": REFUSED,
    "RESOURCE_EXHAUSTED": REFUSED,
    "UNIMPLEMENTED": REFUSED,
    "UNAVAILABLE": UNAVAILABLE,
    "DEADLINE_EXCEEDED": UNAVAILABLE,
    "CANCELLED": UNAVAILABLE,
}


class CommandError(Exception):
    """Ends the command with an exit code and an error that says what to do."""

    def __init__(self, exit_code: int, reason: str, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})


def describe(error: Exception) -> tuple[CommandError, str]:
    """Return how any exception ends the command, and the name of its gRPC status code."""
    if isinstance(error, CommandError):
        return error, ""
    if isinstance(error, EmbeddedServerError):
        return CommandError(UNAVAILABLE, error.reason, error.message), "UNAVAILABLE"
    if isinstance(error, KartaError):
        code = _OF_STATUS.get(error.code, INTERNAL)
        # Without a reason it is gRPC that speaks, and it does not say what to do.
        todo = (
            ". Is a server there? One is started with: karta-runtime dev-serve" if error.reason == "UNAVAILABLE" else ""
        )
        return CommandError(code, error.reason, error.message + todo, error.metadata), error.code
    return CommandError(INTERNAL, "INTERNAL", f"{type(error).__name__}: {error}. This is a defect of kartactl."), ""


def report(output: str, failure: CommandError, status: str = "") -> None:
    """Write an error to stderr: a line for people, or a JSON object when the output is JSON."""
    if output == "text":
        sys.stderr.write(f"kartactl: {failure.reason}: {clean(failure.message)}\n")
        return
    error = {"reason": failure.reason, "message": failure.message, "metadata": failure.metadata}
    sys.stderr.write(json.dumps({"error": error | ({"code": status} if status else {})}) + "\n")
