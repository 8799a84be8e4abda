# ruff: noqa: N802 (names of RPCs)
"""The interceptor on a real server, with handlers of every kind."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from karta import v1
from karta.v1.turn_service_pb2_grpc import TurnServiceServicer, TurnServiceStub, add_TurnServiceServicer_to_server
from karta_server.errors import KartaError
from karta_server.interceptors.caller import caller
from karta_server.interceptors.calls import CallInterceptor

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FRAME = v1.RunTurnResponse(latest_sequence=7)


class Servicer(TurnServiceServicer):
    """Each behaviour is picked by the request's id."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.callers: list[Any] = []

    async def GetTurn(self, request, context):
        self.callers.append(caller())
        match request.turn_id:
            case "named":
                raise KartaError(v1.ERROR_REASON_TURN_NOT_FOUND, "Kein Zug „x“.", session_id="s", turn_id="t")
            case "grouped":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._fail())
            case "defect":
                raise RuntimeError("secret detail")
            case "nothing":
                return None
            case "long":
                raise KartaError(v1.ERROR_REASON_AGENT_NOT_FOUND, "ü" * 9000, agent="x", known="名" * 9000)
        return v1.GetTurnResponse(turn=v1.Turn(turn_id=request.turn_id))

    async def _fail(self):
        raise KartaError(v1.ERROR_REASON_QUEUE_FULL, "The queue is full.", limit=3)

    async def RunTurn(self, request, context):
        self.callers.append(caller())
        try:
            yield FRAME
            yield FRAME.SerializeToString()
            if request.start.request_id == "named":
                raise KartaError(v1.ERROR_REASON_SERVER_STOPPING, "The server is stopping.")
            if request.start.request_id == "open":
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def Converse(self, request_iterator, context):
        self.callers.append(caller())
        async for request in request_iterator:
            yield v1.ConverseResponse(command_result=v1.CommandResult(command_id=request.command_id))


async def total(requests: AsyncIterator[Any], context: object) -> v1.GetTurnResponse:
    """A handler of the kind that the contract has none of yet."""
    seen = [request.turn_id async for request in requests]
    return v1.GetTurnResponse(turn=v1.Turn(turn_id="+".join(seen)))


@asynccontextmanager
async def serving(
    servicer: Servicer, open_streams: int = 10
) -> AsyncIterator[tuple[grpc.aio.Channel, CallInterceptor]]:
    interceptor = CallInterceptor(v1.Limits(max_open_streams=open_streams))
    server = grpc.aio.server(interceptors=[interceptor])
    add_TurnServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    handler = grpc.stream_unary_rpc_method_handler(
        total, v1.GetTurnRequest.FromString, v1.GetTurnResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Total": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, interceptor
    finally:
        await server.stop(0)


async def failure_of(call: Callable[[], Awaitable[object]]) -> tuple[grpc.aio.AioRpcError, dict[str, Any]]:
    """Return the error of a call and its google.rpc details by name."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call()
    raw = dict(caught.value.trailing_metadata()).get("grpc-status-details-bin", b"")
    details = {}
    for detail in status_pb2.Status.FromString(raw).details:
        name = detail.type_url.rpartition(".")[2]
        message = getattr(error_details_pb2, name)()
        assert detail.Unpack(message)
        details[name] = message
    return caught.value, details


async def test_unary_answer_and_caller():
    servicer = Servicer()
    async with serving(servicer) as (channel, _):
        request = v1.GetTurnRequest(turn_id="x")
        answer = await TurnServiceStub(channel).GetTurn(request, metadata=(("traceparent", TRACE),))
    assert answer.turn.turn_id == "x"
    (seen,) = servicer.callers
    assert (seen.tenant_id, seen.principal, seen.user_id, seen.traceparent) == (
        "default",
        "developer",
        "default",
        TRACE,
    )


async def test_stream_takes_messages_and_bytes():
    servicer = Servicer()
    async with serving(servicer) as (channel, interceptor):
        frames = [frame async for frame in TurnServiceStub(channel).RunTurn(v1.RunTurnRequest())]
        assert interceptor.streams.count == 0
    assert frames == [FRAME, FRAME]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", servicer.callers[0].traceparent)


async def test_bidirectional_and_client_streams():
    async with serving(Servicer()) as (channel, _):
        commands = [v1.ConverseRequest(command_id="a"), v1.ConverseRequest(command_id="b")]
        answers = [
            answer.command_result.command_id async for answer in TurnServiceStub(channel).Converse(iter(commands))
        ]
        call = channel.stream_unary(
            "/test.Test/Total", v1.GetTurnRequest.SerializeToString, v1.GetTurnResponse.FromString
        )
        counted = await call(iter([v1.GetTurnRequest(turn_id="1"), v1.GetTurnRequest(turn_id="2")]))
    assert answers == ["a", "b"]
    assert counted.turn.turn_id == "1+2"


async def test_each_call_has_its_own_caller():
    servicer = Servicer()
    async with serving(servicer) as (channel, _):
        stub = TurnServiceStub(channel)
        await asyncio.gather(*(stub.GetTurn(v1.GetTurnRequest(turn_id=str(n))) for n in range(20)))
    assert len({seen.traceparent for seen in servicer.callers}) == 20


async def test_named_error_has_details():
    async with serving(Servicer()) as (channel, _):
        stub = TurnServiceStub(channel)
        error, details = await failure_of(lambda: stub.GetTurn(v1.GetTurnRequest(turn_id="named")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "Kein Zug „x“."
    assert details["ErrorInfo"].reason == "TURN_NOT_FOUND"
    assert details["ErrorInfo"].domain == "karta.sh"
    assert dict(details["ErrorInfo"].metadata) == {"session_id": "s", "turn_id": "t"}
    assert details["ResourceInfo"].resource_type == "karta.v1.Turn"
    assert details["ResourceInfo"].resource_name == "t"


async def test_named_error_in_a_stream_comes_behind_its_messages():
    async with serving(Servicer()) as (channel, _):
        request = v1.RunTurnRequest(start=v1.StartTurnRequest(request_id="named"))
        call = TurnServiceStub(channel).RunTurn(request)
        frames: list[v1.RunTurnResponse] = []

        async def read() -> None:
            async for frame in call:
                frames.append(frame)  # noqa: PERF401  # what came before the error counts

        error, details = await failure_of(read)
    assert len(frames) == 2
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert details["ErrorInfo"].reason == "SERVER_STOPPING"
    assert details["RetryInfo"].retry_delay.seconds == 1


async def test_error_out_of_a_task_group_keeps_its_reason():
    async with serving(Servicer()) as (channel, _):
        stub = TurnServiceStub(channel)
        error, details = await failure_of(lambda: stub.GetTurn(v1.GetTurnRequest(turn_id="grouped")))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert {"ErrorInfo", "RetryInfo", "QuotaFailure"} == set(details)


@pytest.mark.parametrize("turn_id", ["defect", "nothing"])
async def test_defect_is_internal_and_stays_in_the_log(turn_id, caplog):
    caplog.set_level(logging.INFO)
    async with serving(Servicer()) as (channel, _):
        stub = TurnServiceStub(channel)
        error, details = await failure_of(lambda: stub.GetTurn(v1.GetTurnRequest(turn_id=turn_id)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert details["ErrorInfo"].reason == "INTERNAL"
    request = details["ErrorInfo"].metadata["request"]
    assert "secret" not in str(error)
    (defect,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR and "karta" in entry.name]
    assert request in defect.getMessage()
    assert defect.exc_info
    assert any(
        "code=INTERNAL reason=INTERNAL" in entry.getMessage() and request in entry.getMessage()
        for entry in caplog.records
    )


async def test_bytes_that_are_no_request_are_the_callers_fault():
    async with serving(Servicer()) as (channel, _):
        call = channel.unary_unary("/karta.v1.TurnService/GetTurn")
        error, details = await failure_of(lambda: call(b"\xff\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details["ErrorInfo"].reason == "FIELD_INVALID"
    assert "GetTurn" in details["BadRequest"].field_violations[0].description


async def test_long_error_still_arrives():
    async with serving(Servicer()) as (channel, _):
        stub = TurnServiceStub(channel)
        error, details = await failure_of(lambda: stub.GetTurn(v1.GetTurnRequest(turn_id="long")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("üüü")
    assert len(error.details().encode()) <= 1024
    assert details["ErrorInfo"].metadata["agent"] == "x"


async def test_unknown_method_is_unimplemented():
    async with serving(Servicer()) as (channel, _):
        error, _details = await failure_of(lambda: channel.unary_unary("/karta.v1.TurnService/No")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_open_streams_are_limited_and_given_back():
    servicer = Servicer()
    async with serving(servicer, open_streams=1) as (channel, interceptor):
        stub = TurnServiceStub(channel)
        first = stub.RunTurn(v1.RunTurnRequest(start=v1.StartTurnRequest(request_id="open")))
        await first.read()
        error, details = await failure_of(lambda: stub.RunTurn(v1.RunTurnRequest()).read())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(details["ErrorInfo"].metadata) == {"resource": "open_streams", "limit": "1"}
        assert details["QuotaFailure"].violations[0].subject == "open_streams"
        first.cancel()
        # The generator is closed at once, not when it is collected.
        await asyncio.wait_for(servicer.closed.wait(), 10)
        while interceptor.streams.count:  # noqa: ASYNC110  # the test's time-out is the limit
            await asyncio.sleep(0.001)
        assert len([frame async for frame in stub.RunTurn(v1.RunTurnRequest())]) == 2


async def test_grpc_own_services_work_behind_it():
    async with serving(Servicer()) as (channel, _):
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == 1
        error, _details = await failure_of(lambda: stub.Check(health_pb2.HealthCheckRequest(service="no")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == 1
        watch.cancel()


async def test_request_log_has_one_line_a_call_without_content(caplog):
    caplog.set_level(logging.INFO)
    async with serving(Servicer()) as (channel, _):
        stub = TurnServiceStub(channel)
        await stub.GetTurn(v1.GetTurnRequest(turn_id="private"), metadata=(("traceparent", TRACE),))
        [_ async for _ in stub.RunTurn(v1.RunTurnRequest())]
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/no/way")(b"")
    lines = [entry.getMessage() for entry in caplog.records if entry.name == "karta_server.calls"]
    assert len(lines) == 3
    assert lines[0].startswith("call method=/karta.v1.TurnService/GetTurn code=OK ms=")
    assert f" trace={TRACE[3:35]} request=" in lines[0]
    assert "received=1/9B sent=1/" in lines[0]
    assert "sent=2/4B" in lines[1]
    assert "code=UNIMPLEMENTED" in lines[2]
    assert "private" not in "".join(lines)
