"""From a gRPC status, and from errors inside messages, to the client's own exceptions."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata

from karta import v1
from karta_client import errors


def rpc_error(code: grpc.StatusCode, reason: str = "", domain: str = "karta.sh", message: str = "m") -> AioRpcError:
    trailing = Metadata()
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"session_id": "s"})
        other, packed = any_pb2.Any(), any_pb2.Any()
        other.Pack(error_details_pb2.BadRequest())
        packed.Pack(info)
        status = status_pb2.Status(code=code.value[0], message=message, details=[other, packed])
        trailing.add("grpc-status-details-bin", status.SerializeToString())
    return AioRpcError(code, Metadata(), trailing, details=message)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgumentError),
        (grpc.StatusCode.OUT_OF_RANGE, errors.InvalidArgumentError),
        (grpc.StatusCode.NOT_FOUND, errors.NotFoundError),
        (grpc.StatusCode.ALREADY_EXISTS, errors.ConflictError),
        (grpc.StatusCode.ABORTED, errors.ConflictError),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPreconditionError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDeniedError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.PermissionDeniedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.LimitError),
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
        (grpc.StatusCode.CANCELLED, errors.UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UnsupportedError),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.DATA_LOSS, errors.InternalError),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
    ],
)
def test_every_code_has_its_exception(code: grpc.StatusCode, kind: type[errors.KartaError]) -> None:
    error = errors.from_rpc(rpc_error(code, "SOME_REASON"))
    assert type(error) is kind
    assert (error.reason, error.code, error.message) == ("SOME_REASON", code.name, "m")
    assert error.metadata == {"session_id": "s"}


def test_every_grpc_code_is_in_the_table() -> None:
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            assert errors.from_rpc(rpc_error(code)).code == code.name


def test_without_details_the_code_is_the_reason() -> None:
    error = errors.from_rpc(rpc_error(grpc.StatusCode.NOT_FOUND))
    assert (error.reason, error.metadata) == ("NOT_FOUND", {})
    assert str(error) == "m [NOT_FOUND]"


def test_details_of_another_domain_are_not_ours() -> None:
    assert errors.from_rpc(rpc_error(grpc.StatusCode.NOT_FOUND, "X", domain="other.example")).reason == "NOT_FOUND"


def test_details_that_are_no_status_are_ignored() -> None:
    trailing = Metadata(("grpc-status-details-bin", b"\xff\xff\xff"))
    error = AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), trailing, details="broken")
    assert type(errors.from_rpc(error)) is errors.InternalError


@pytest.mark.parametrize("message", ["Received RST_STREAM with error code 2", "Stream removed"])
def test_a_cut_connection_is_unavailable_whatever_its_code(message: str) -> None:
    error = errors.from_rpc(rpc_error(grpc.StatusCode.INTERNAL, message=message))
    assert isinstance(error, errors.UnavailableError)


def test_a_named_failure_is_not_mistaken_for_a_cut() -> None:
    error = errors.from_rpc(rpc_error(grpc.StatusCode.INTERNAL, "INTERNAL", message="RST_STREAM"))
    assert isinstance(error, errors.InternalError)


def test_an_error_in_a_message() -> None:
    error = errors.from_error(
        v1.Error(code=9, reason=v1.ERROR_REASON_SESSION_BUSY, message="busy", metadata={"session_id": "s"})
    )
    assert type(error) is errors.FailedPreconditionError
    assert (error.reason, error.code, error.metadata) == ("SESSION_BUSY", "FAILED_PRECONDITION", {"session_id": "s"})


def test_a_reason_of_a_newer_server() -> None:
    error = errors.from_error(v1.Error(code=9, reason=9999, message="new"))
    assert error.reason == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (v1.TURN_STATE_FAILED, errors.TurnFailedError),
        (v1.TURN_STATE_CANCELLED, errors.TurnCancelledError),
        (v1.TURN_STATE_INTERRUPTED, errors.TurnInterruptedError),
    ],
)
def test_a_turn_that_did_not_answer(state: v1.TurnState, kind: type[errors.TurnError]) -> None:
    failure = v1.Error(code=8, reason=v1.ERROR_REASON_MODEL_RATE_LIMITED, message="slow down")
    error = errors.from_turn(v1.Turn(turn_id="t", state=state, error=failure))
    assert type(error) is kind
    assert (error.reason, error.message, error.error) == ("MODEL_RATE_LIMITED", "slow down", failure)
    bare = errors.from_turn(v1.Turn(turn_id="t", state=state, state_reason="alice did it"))
    assert bare.message == "alice did it"


def test_everything_is_a_karta_error() -> None:
    kinds = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert len(kinds) == 17
    assert all(issubclass(kind, errors.KartaError) for kind in kinds)
