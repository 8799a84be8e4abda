"""The one interceptor: what every call has, whatever its handler."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Never, Self

import grpc

from karta import v1
from karta_server.error_codes import REASON_PREFIX
from karta_server.errors import KartaError
from karta_server.interceptors.caller import current_caller, developer
from karta_server.interceptors.errors import DETAILS_KEY, code_name, grpc_code, status, to_error
from karta_server.interceptors.record import CallRecord
from karta_server.interceptors.trace import trace_id, traceparent

if TYPE_CHECKING:
    # Generic in the stubs alone.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    Context = grpc.aio.ServicerContext


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call its caller, its error mapping, its line in the log and, for streams, its place.

    Handlers are coroutine functions; streams of answers may be async generators,
    and requests of streams are read by iterating. What handlers yield or return
    is a message or its bytes, ready made. Failures become statuses with
    google.rpc details; UNKNOWN never leaves the server.
    """

    def __init__(self, limits: v1.Limits) -> None:
        self.streams = OpenStreams(limits.max_open_streams)
        self._running = RunningCalls()
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler, wrapped; None stays None, which is UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            CallRecord(method[:200]).write(grpc.StatusCode.UNIMPLEMENTED.name)
            return None
        # Only methods that exist are kept, so this does not grow.
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, _Method(method, handler, self.streams, self._running).wrapped())
        return known[1]

    def end_calls(self) -> None:
        """End the calls that run with SERVER_STOPPING, so that their clients know to come again."""
        self._running.end()


class RunningCalls:
    """The tasks of the calls that run."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.ended = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Count the current task while it serves a call."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        """Cancel them; each then says why."""
        self.ended = True
        for task in self._tasks:
            task.cancel()


class OpenStreams:
    """How many streams of answers are open, and how many may be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one place. Raises KartaError LIMIT_REACHED."""
        if self.count >= self.limit:
            message = f"The server has {self.limit} open streams, its limit; close some or try again later."
            raise KartaError(v1.ERROR_REASON_LIMIT_REACHED, message, resource="open_streams", limit=self.limit)
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


class _Method:
    """One method's handler. grpc gives it bytes and gets bytes, so that nothing fails out of its sight."""

    def __init__(self, name: str, handler: Handler, streams: OpenStreams, running: RunningCalls) -> None:
        self._name = name
        self._handler = handler
        self._streams = streams
        self._running = running
        self._behavior: Callable[[Any, Context], Any] = getattr(handler, _kind(handler))

    def wrapped(self) -> Handler:
        """Return a handler of the same kind that does all this."""
        make = getattr(grpc, f"{_kind(self._handler)}_rpc_method_handler")
        made: Handler = make(self._run, request_deserializer=None, response_serializer=self._encode)
        return made

    async def _run(self, incoming: Any, context: Context) -> bytes | None:
        trace = traceparent(_header(context, "traceparent"))
        record = CallRecord(self._name, trace_id(trace))
        # Set here and not in intercept_service: this is the handler's own task.
        current_caller.set(developer(trace))
        try:
            with self._running.entered():
                answer = await self._answer(incoming, context, record)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._running.ended and task is not None and task.uncancel() == 0:
                await _refuse(_stopping(), context, record)
            record.write(grpc.StatusCode.CANCELLED.name)
            raise
        except grpc.aio.AbortError:
            record.write(code_name(context.code()))
            raise
        except Exception as failure:
            await _refuse(failure, context, record)
        record.write(code_name(context.code()))
        return answer

    async def _answer(self, incoming: Any, context: Context, record: CallRecord) -> bytes | None:
        streamed = self._handler.request_streaming
        request = _Requests(incoming, self, record) if streamed else self.decode(incoming, record)
        if self._handler.response_streaming:
            await self._stream(request, context, record)
            return None
        data = self._encode(await self._behavior(request, context))
        record.sent(data)
        return data

    async def _stream(self, request: Any, context: Context, record: CallRecord) -> None:
        with self._streams.place():
            answers = self._behavior(request, context)
            if not hasattr(answers, "__aiter__"):
                # A coroutine that writes to the context itself, as grpc's health service does.
                await answers
                return
            # Written here instead of yielded to grpc: when the client leaves, the
            # generator is closed in this task, now, and not when it is collected.
            async with aclosing(answers):
                async for answer in answers:
                    data = self._encode(answer)
                    await context.write(data)
                    record.sent(data)

    def decode(self, data: bytes, record: CallRecord) -> Any:
        """Return the request. Raises KartaError FIELD_INVALID when it is none."""
        record.received(data)
        deserialize = self._handler.request_deserializer
        if deserialize is None:
            return data
        try:
            return deserialize(data)
        except Exception:
            message = f"The request's bytes are not a message that {self._name} takes; is the contract the same?"
            raise KartaError(v1.ERROR_REASON_FIELD_INVALID, message, field="") from None

    def _encode(self, answer: Any) -> bytes:
        serialize = self._handler.response_serializer
        data: bytes = answer if type(answer) is bytes or serialize is None else serialize(answer)
        return data


class _Requests:
    """The requests of a stream."""

    def __init__(self, incoming: AsyncIterator[bytes], method: _Method, record: CallRecord) -> None:
        self._incoming = incoming
        self._method = method
        self._record = record

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return self._method.decode(await anext(self._incoming), self._record)


async def _refuse(failure: Exception, context: Context, record: CallRecord) -> Never:
    error = to_error(failure, record.request)
    if error.reason == v1.ERROR_REASON_INTERNAL:
        record.defect(failure)
    code = grpc_code(error)
    record.write(code.name, v1.ErrorReason.Name(error.reason).removeprefix(REASON_PREFIX))
    answer = status(error)
    await context.abort(code, answer.message, ((DETAILS_KEY, answer.SerializeToString()),))


def _stopping() -> KartaError:
    message = "The server is stopping; repeat the call against the next one, a stream behind its last sequence."
    return KartaError(v1.ERROR_REASON_SERVER_STOPPING, message)


def _kind(handler: Handler) -> str:
    """The two sides as grpc names them: "unary_stream"."""
    return "_".join("stream" if side else "unary" for side in (handler.request_streaming, handler.response_streaming))


def _header(context: Context, key: str) -> str | None:
    values = [value for name, value in context.invocation_metadata() or () if name == key]
    # More than one is as good as none: nobody knows which is right.
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None
