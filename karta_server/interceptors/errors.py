"""Errors as gRPC statuses: code, message and google.rpc details."""

from collections.abc import Iterator
from itertools import islice

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types

from karta import v1
from karta_server.error_codes import CODE_OF, REASON_PREFIX, to_error

__all__ = ["DETAILS_KEY", "DOMAIN", "STATUS_OF", "code_name", "cut", "grpc_code", "status", "to_error"]

DOMAIN = "karta.sh"
DETAILS_KEY = "grpc-status-details-bin"

_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
STATUS_OF: dict[int, grpc.StatusCode] = {reason: _BY_NUMBER[code] for reason, code in CODE_OF.items()}
"""The gRPC status of every ErrorReason."""

# A client refuses headers above 8 KiB. The message counts up to three times
# for its percent-encoding, the details four thirds for base64.
_MESSAGE_BYTES = 1024
_VALUE_BYTES = 768
_DETAILS_BYTES = 3072
_SHORT_BYTES = 128
_METADATA_ENTRIES = 8

_RETRY_SECONDS: dict[int, int] = {
    v1.ERROR_REASON_SERVER_STOPPING: 1,
    v1.ERROR_REASON_STORE_UNAVAILABLE: 1,
    v1.ERROR_REASON_LIMIT_REACHED: 5,
    v1.ERROR_REASON_QUEUE_FULL: 5,
}
# Resource type and the metadata that names it.
_RESOURCES: dict[int, tuple[str, str]] = {
    v1.ERROR_REASON_SESSION_NOT_FOUND: ("karta.v1.Session", "session_id"),
    v1.ERROR_REASON_TURN_NOT_FOUND: ("karta.v1.Turn", "turn_id"),
    v1.ERROR_REASON_INPUT_REQUEST_NOT_FOUND: ("karta.v1.InputRequest", "input_request_id"),
    v1.ERROR_REASON_AGENT_NOT_FOUND: ("karta.v1.Agent", "agent"),
    v1.ERROR_REASON_PARTICIPANT_NOT_FOUND: ("karta.v1.Participant", "participant_id"),
    v1.ERROR_REASON_HARNESS_NOT_FOUND: ("karta.v1.Harness", "harness"),
    v1.ERROR_REASON_TENANT_NOT_FOUND: ("karta.v1.Tenant", "tenant_id"),
}
_FIELDS = (
    v1.ERROR_REASON_FIELD_REQUIRED,
    v1.ERROR_REASON_FIELD_INVALID,
    v1.ERROR_REASON_FIELD_TOO_LARGE,
)
_QUOTAS = (v1.ERROR_REASON_LIMIT_REACHED, v1.ERROR_REASON_QUEUE_FULL)


def grpc_code(error: v1.Error) -> grpc.StatusCode:
    """Return the status code of an error; INTERNAL for a number that is none."""
    code = _BY_NUMBER.get(error.code, grpc.StatusCode.INTERNAL)
    # An error that says OK would end the call as a success.
    return grpc.StatusCode.INTERNAL if code is grpc.StatusCode.OK else code


def code_name(code: object) -> str:
    """Return the name of what a context says its code is: a StatusCode, its number, or None for OK."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _BY_NUMBER[code].name if isinstance(code, int) and code in _BY_NUMBER else grpc.StatusCode.OK.name


def status(error: v1.Error) -> status_pb2.Status:
    """Return the status with its details, cut to what fits in a header."""
    full = _status(error, _VALUE_BYTES)
    if full.ByteSize() <= _DETAILS_BYTES:
        return full
    short = _status(error, _SHORT_BYTES)
    # ErrorInfo is first: programs need it most, and alone it fits.
    while short.ByteSize() > _DETAILS_BYTES and len(short.details) > 1:
        short.details.pop()
    return short


def cut(text: str, limit_bytes: int) -> str:
    """Return text of at most so many bytes, whole characters, `…` where it was cut."""
    data = text.encode(errors="replace")
    if len(data) <= limit_bytes:
        return data.decode()
    return data[: limit_bytes - 3].decode(errors="ignore") + "…"


def _status(error: v1.Error, value_bytes: int) -> status_pb2.Status:
    message = cut(error.message, _MESSAGE_BYTES)
    result = status_pb2.Status(code=grpc_code(error).value[0], message=message)
    for detail in _details(error, value_bytes):
        result.details.add().Pack(detail)
    return result


def _details(error: v1.Error, value_bytes: int) -> Iterator[Message]:
    entries = islice(error.metadata.items(), _METADATA_ENTRIES)
    metadata = {key[:_SHORT_BYTES]: cut(value, value_bytes) for key, value in entries}
    reason = v1.ErrorReason.Name(error.reason).removeprefix(REASON_PREFIX)
    yield error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    description = cut(error.message, _SHORT_BYTES)
    if error.reason in _FIELDS:
        bad_request = error_details_pb2.BadRequest()
        bad_request.field_violations.add(field=metadata.get("field", ""), description=description, reason=reason)
        yield bad_request
    if error.reason in _RETRY_SECONDS:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = _RETRY_SECONDS[error.reason]
        yield retry
    if error.reason in _RESOURCES:
        kind, key = _RESOURCES[error.reason]
        name = metadata.get(key, "")
        yield error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name, description=description)
    if error.reason in _QUOTAS:
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=metadata.get("resource", "queued_turns"), description=description)
        yield quota
