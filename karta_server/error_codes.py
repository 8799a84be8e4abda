"""Which gRPC code each reason comes with, and errors as messages.

Numbers instead of grpc.StatusCode, because core uses this and does not know grpc.
"""

from collections.abc import Mapping
from types import MappingProxyType

from google.rpc import code_pb2  # type: ignore[import-untyped]  # ships no types

from karta import v1
from karta_server.errors import KartaError

REASON_PREFIX = "ERROR_REASON_"

CODE_OF: Mapping[int, int] = MappingProxyType(
    {
        v1.ERROR_REASON_FIELD_REQUIRED: code_pb2.INVALID_ARGUMENT,
        v1.ERROR_REASON_FIELD_INVALID: code_pb2.INVALID_ARGUMENT,
        v1.ERROR_REASON_FIELD_TOO_LARGE: code_pb2.INVALID_ARGUMENT,
        v1.ERROR_REASON_SESSION_NOT_FOUND: code_pb2.NOT_FOUND,
        v1.ERROR_REASON_TURN_NOT_FOUND: code_pb2.NOT_FOUND,
        v1.ERROR_REASON_INPUT_REQUEST_NOT_FOUND: code_pb2.NOT_FOUND,
        v1.ERROR_REASON_AGENT_NOT_FOUND: code_pb2.NOT_FOUND,
        v1.ERROR_REASON_PARTICIPANT_NOT_FOUND: code_pb2.NOT_FOUND,
        v1.ERROR_REASON_HARNESS_NOT_FOUND: code_pb2.NOT_FOUND,
        v1.ERROR_REASON_TENANT_NOT_FOUND: code_pb2.NOT_FOUND,
        v1.ERROR_REASON_REQUEST_ID_REUSED: code_pb2.ALREADY_EXISTS,
        v1.ERROR_REASON_PARTICIPANT_EXISTS: code_pb2.ALREADY_EXISTS,
        v1.ERROR_REASON_ETAG_MISMATCH: code_pb2.ABORTED,
        v1.ERROR_REASON_FENCED: code_pb2.ABORTED,
        v1.ERROR_REASON_SESSION_BUSY: code_pb2.FAILED_PRECONDITION,
        v1.ERROR_REASON_SESSION_ARCHIVED: code_pb2.FAILED_PRECONDITION,
        v1.ERROR_REASON_INPUT_ALREADY_RESOLVED: code_pb2.FAILED_PRECONDITION,
        v1.ERROR_REASON_HARNESS_NOT_INSTALLED: code_pb2.FAILED_PRECONDITION,
        v1.ERROR_REASON_PARTICIPANT_IS_OBSERVER: code_pb2.PERMISSION_DENIED,
        v1.ERROR_REASON_PARTICIPANT_IS_NOT_OWNER: code_pb2.PERMISSION_DENIED,
        v1.ERROR_REASON_QUEUE_FULL: code_pb2.RESOURCE_EXHAUSTED,
        v1.ERROR_REASON_LIMIT_REACHED: code_pb2.RESOURCE_EXHAUSTED,
        v1.ERROR_REASON_SEQUENCE_OUT_OF_RANGE: code_pb2.OUT_OF_RANGE,
        v1.ERROR_REASON_EVENTS_TRIMMED: code_pb2.OUT_OF_RANGE,
        v1.ERROR_REASON_SERVER_STOPPING: code_pb2.UNAVAILABLE,
        v1.ERROR_REASON_STORE_UNAVAILABLE: code_pb2.UNAVAILABLE,
        v1.ERROR_REASON_WAIT_TIMEOUT: code_pb2.DEADLINE_EXCEEDED,
        v1.ERROR_REASON_INTERNAL: code_pb2.INTERNAL,
        v1.ERROR_REASON_HARNESS_START_FAILED: code_pb2.FAILED_PRECONDITION,
        v1.ERROR_REASON_HARNESS_CRASHED: code_pb2.UNAVAILABLE,
        v1.ERROR_REASON_HARNESS_FAILED: code_pb2.INTERNAL,
        v1.ERROR_REASON_MODEL_RATE_LIMITED: code_pb2.RESOURCE_EXHAUSTED,
        v1.ERROR_REASON_MODEL_UNAVAILABLE: code_pb2.UNAVAILABLE,
        v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED: code_pb2.UNAUTHENTICATED,
        v1.ERROR_REASON_PROMPT_TOO_LONG: code_pb2.INVALID_ARGUMENT,
        v1.ERROR_REASON_SERVER_KILLED: code_pb2.UNAVAILABLE,
        v1.ERROR_REASON_CONFIG_INVALID: code_pb2.INVALID_ARGUMENT,
        v1.ERROR_REASON_STATE_DIRECTORY_IN_USE: code_pb2.FAILED_PRECONDITION,
        v1.ERROR_REASON_SCHEMA_TOO_NEW: code_pb2.FAILED_PRECONDITION,
        v1.ERROR_REASON_ADDRESS_REFUSED: code_pb2.FAILED_PRECONDITION,
    }
)


def code_of(reason: int) -> int:
    """Return the google.rpc.Code of a reason; INTERNAL for one that no error may have."""
    return CODE_OF.get(reason, code_pb2.INTERNAL)


def to_error(failure: BaseException, request: str = "") -> v1.Error:
    """Return a failure as it stands in a message.

    A KartaError, alone or in a group, keeps its reason; anything else is a
    defect and becomes INTERNAL, without a word of the exception: `request` is
    the id under which the caller has logged it.
    """
    named = _named(failure)
    if named is None:
        message = "The server failed; this is a defect of Karta. Its log has more under the same request id."
        metadata = {"request": request} if request else {}
        return v1.Error(code=code_pb2.INTERNAL, reason=v1.ERROR_REASON_INTERNAL, message=message, metadata=metadata)
    metadata = {_text(key): _text(value) for key, value in named.metadata.items()}
    return v1.Error(code=code_of(named.reason), reason=named.reason, message=_text(named.message), metadata=metadata)


def _named(failure: BaseException) -> KartaError | None:
    # A task group raises a group even for one failure.
    if isinstance(failure, BaseExceptionGroup):
        return next((found for each in failure.exceptions if (found := _named(each))), None)
    return failure if isinstance(failure, KartaError) else None


def _text(value: str) -> str:
    # File names may hold bytes that are no text, which protobuf refuses.
    return value.encode(errors="replace").decode()
