"""The exceptions of the client: everything that it raises on purpose is a KartaError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from karta import v1
    from karta_client.input import InputRequest


class KartaError(Exception):
    """A failure that has a name.

    `reason` is the name of a value of ErrorReason without its prefix
    ("SESSION_NOT_FOUND"), or the name of the gRPC code when the server gave
    none. `code` is the name of the gRPC code ("NOT_FOUND"). `message` says what
    happened and what to do. `metadata` holds what the reason documents.
    """

    def __init__(
        self, message: str, *, reason: str = "", code: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or code
        self.code = code
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]" if self.reason else self.message


class InvalidArgumentError(KartaError):
    """The request is wrong: a field is missing, malformed or too large."""


class NotFoundError(KartaError):
    """What the request names does not exist for this caller."""


class ConflictError(KartaError):
    """It exists already, or changed in the meantime."""


class FailedPreconditionError(KartaError):
    """The request is right, but not in this state: the session is busy, the input request is answered."""


class PermissionDeniedError(KartaError):
    """The caller may not do this, or is not known."""


class LimitError(KartaError):
    """A limit is reached; the metadata say which."""


class UnavailableError(KartaError):
    """The server cannot be reached or takes no work, and trying again did not help."""


class DeadlineError(KartaError):
    """It did not end in time. What was waited for goes on."""


class UnsupportedError(KartaError):
    """The server, or the harness of the session, cannot do this."""


class InternalError(KartaError):
    """A defect of the server."""


class EmbeddedServerError(KartaError):
    """The embedded server of a project did not start. `log` has the last lines that it wrote."""

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(f"{message}\n{log}" if log else message, reason="EMBEDDED_SERVER_FAILED")
        self.log = log


class TurnError(KartaError):
    """A turn did not end with an answer. `turn` is the turn as it is."""

    def __init__(self, turn: v1.Turn) -> None:
        code, reason, message, metadata = _parts(turn.error)
        default = f"The turn {turn.turn_id} did not complete."
        super().__init__(message or turn.state_reason or default, reason=reason, code=code, metadata=metadata)
        self.turn = turn
        self.error = turn.error


class TurnFailedError(TurnError):
    """The turn FAILED; `error` says why."""


class TurnCancelledError(TurnError):
    """Somebody cancelled the turn."""


class TurnInterruptedError(TurnError):
    """The server stopped or was killed while the turn ran."""


class InputRequiredError(KartaError):
    """The turn waits for answers, and nobody was named who gives them. It goes on waiting.

    `inputs` are the requests, each with `allow()`, `deny()` and `answer()`,
    which answer at once (to be awaited when raised by an awaited call).
    `session.wait(error.turn_id)` waits on.
    """

    def __init__(self, turn: v1.Turn, inputs: Sequence[InputRequest[Any]]) -> None:
        titles = "; ".join(item.raw.title or item.raw.tool_name or "a question" for item in inputs)
        message = f"The turn waits for input: {titles}. Pass on_input=, or answer error.inputs and session.wait() on."
        super().__init__(message, reason="INPUT_REQUIRED", metadata={"turn_id": turn.turn_id})
        self.turn = turn
        self.turn_id = turn.turn_id
        self.session_id = turn.session_id
        self.inputs = list(inputs)


DOMAIN = "karta.sh"

# Numbers of google.rpc.Code: what status codes and karta.v1.Error.code have in common.
_CODES: dict[int, tuple[str, type[KartaError]]] = {
    1: ("CANCELLED", UnavailableError),
    2: ("UNKNOWN", InternalError),
    3: ("INVALID_ARGUMENT", InvalidArgumentError),
    4: ("DEADLINE_EXCEEDED", DeadlineError),
    5: ("NOT_FOUND", NotFoundError),
    6: ("ALREADY_EXISTS", ConflictError),
    7: ("PERMISSION_DENIED", PermissionDeniedError),
    8: ("RESOURCE_EXHAUSTED", LimitError),
    9: ("FAILED_PRECONDITION", FailedPreconditionError),
    10: ("ABORTED", ConflictError),
    11: ("OUT_OF_RANGE", InvalidArgumentError),
    12: ("UNIMPLEMENTED", UnsupportedError),
    13: ("INTERNAL", InternalError),
    14: ("UNAVAILABLE", UnavailableError),
    15: ("DATA_LOSS", InternalError),
    16: ("UNAUTHENTICATED", PermissionDeniedError),
}

# What a cut connection looks like besides UNAVAILABLE.
_CUT = ("RST_STREAM", "Stream removed", "Socket closed", "GOAWAY")


def from_rpc(error: Any) -> KartaError:
    """Turn a grpc.RpcError, of the synchronous or the asyncio API, into the exception that names it."""
    number: int = error.code().value[0]
    message = error.details() or "The call failed without a message."
    info = _error_info(error.trailing_metadata() or ())
    if info is not None:
        return _make(number, info.reason, message, info.metadata)
    if any(sign in message for sign in _CUT):
        number = 14
    return _make(number, "", message, {})


def from_error(error: v1.Error) -> KartaError:
    """Turn an Error inside a message into the exception that names it."""
    _, reason, message, metadata = _parts(error)
    return _make(error.code, reason, message, metadata)


def from_turn(turn: v1.Turn) -> TurnError:
    """Return the exception for a turn that ended otherwise than COMPLETED."""
    from karta import v1

    kinds = {v1.TURN_STATE_CANCELLED: TurnCancelledError, v1.TURN_STATE_INTERRUPTED: TurnInterruptedError}
    return kinds.get(turn.state, TurnFailedError)(turn)


def _make(number: int, reason: str, message: str, metadata: Mapping[str, str]) -> KartaError:
    code, kind = _CODES.get(number, ("UNKNOWN", InternalError))
    return kind(message, reason=reason, code=code, metadata=metadata)


def _parts(error: v1.Error) -> tuple[str, str, str, Mapping[str, str]]:
    from karta import v1

    if not error.reason:
        return "", "", error.message, error.metadata
    code, _ = _CODES.get(error.code, ("UNKNOWN", InternalError))
    try:
        reason = v1.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    except ValueError:  # A newer server has reasons that this client does not know.
        reason = code
    return code, reason, error.message, error.metadata


def _error_info(metadata: Sequence[tuple[str, str | bytes]]) -> Any:
    """Return the google.rpc.ErrorInfo of the server's, or None."""
    data = next((value for key, value in metadata if key == "grpc-status-details-bin"), None)
    if not isinstance(data, bytes):
        return None
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None
