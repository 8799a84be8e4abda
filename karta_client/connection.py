"""The connection of asyncio code: the channel to a server, and its stubs."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from karta.v1.agent_service_pb2_grpc import AgentServiceStub
from karta.v1.input_service_pb2_grpc import InputServiceStub
from karta.v1.server_service_pb2_grpc import ServerServiceStub
from karta.v1.session_service_pb2_grpc import SessionServiceStub
from karta.v1.turn_service_pb2_grpc import TurnServiceStub
from karta_client.calls import Call, Frame
from karta_client.endpoint import ConnectionBase, channel_options, resolve_target
from karta_client.errors import KartaError, UnavailableError

if TYPE_CHECKING:
    from karta.v1.agent_service_pb2_grpc import AgentServiceAsyncStub
    from karta.v1.input_service_pb2_grpc import InputServiceAsyncStub
    from karta.v1.server_service_pb2_grpc import ServerServiceAsyncStub
    from karta.v1.session_service_pb2_grpc import SessionServiceAsyncStub
    from karta.v1.turn_service_pb2_grpc import TurnServiceAsyncStub

R = TypeVar("R")

_READY_LIMIT_SECONDS = 5.0


class Connection(ConnectionBase):
    """A connection for one event loop: that which runs when it is opened.

    `channel` and the stubs `sessions`, `turns`, `inputs`, `agents` and `server`
    are there after `open`.
    """

    channel: grpc.aio.Channel | None
    sessions: SessionServiceAsyncStub
    turns: TurnServiceAsyncStub
    inputs: InputServiceAsyncStub
    agents: AgentServiceAsyncStub
    server: ServerServiceAsyncStub

    def __init__(
        self,
        target: str,
        project: Path,
        *,
        reconnect_timeout: float = 60.0,
        trace: str = "",
        state: Path | None = None,
    ) -> None:
        super().__init__(target, project, reconnect_timeout, trace, state)
        self.channel = None
        self._lock = asyncio.Lock()
        self._guard: AsyncGenerator[None, None] | None = None
        self._retired: list[grpc.aio.Channel] = []
        # What is left when it is not closed: the share in the project's server.
        weakref.finalize(self, self.endpoint.close)

    async def call(self, call: Call[R]) -> R:
        """Make a unary call; repeats it while the server is away. Raises KartaError."""
        backoff = self.backoff()
        while True:
            try:
                await self.open()
                answer: R = await self._method(call)(
                    call.request, timeout=call.timeout_seconds, metadata=self.metadata()
                )
            except grpc.RpcError as error:
                failure = self.failed(error)
            else:
                self.succeeded()
                return answer
            if not isinstance(failure, UnavailableError):
                raise failure
            await asyncio.sleep(backoff.next(failure))

    async def frames(self, call: Call[Frame]) -> AsyncGenerator[Frame, None]:
        """Open a stream once and yield its frames. Raises KartaError; closing the iterator cancels the call."""
        await self.open()
        stream = self._method(call)(call.request, timeout=call.timeout_seconds, metadata=self.metadata())
        try:
            while (frame := await self._read(stream)) is not None:
                self.succeeded()
                yield frame
        finally:
            stream.cancel()

    async def open(self) -> None:
        """Connect when that is not done; looks after the project's server. Raises EmbeddedServerError."""
        if self.channel is not None and not self.lost:
            return
        async with self._lock:
            self.lost = False
            address = self.endpoint.target or await self._open_endpoint()
            if self.channel is None or address != self._address:
                self._retire()
                self._address = address
                await self._watch_loop()
                self._bind(grpc.aio.insecure_channel(address, options=channel_options(address)))

    async def close(self) -> None:
        """End what is open, streams with it; idempotent. A later call opens it again."""
        if self.inherited:
            return
        async with self._lock:
            await self._close_channel()
            self.endpoint.close()
            guard, self._guard = self._guard, None
            if guard is not None:
                await guard.aclose()

    def abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close from outside of its loop: let go of the project's server now, and of the channel when the loop can."""
        if self.inherited:
            return
        self.endpoint.close()
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(self.close(), loop)

    async def __aenter__(self) -> Connection:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self, stream: Any) -> Frame | None:
        try:
            frame = await stream.read()
        except grpc.RpcError as error:
            raise self.failed(error) from None
        return None if frame is grpc.aio.EOF else frame

    async def _open_endpoint(self) -> str:
        work = asyncio.get_running_loop().run_in_executor(None, self.endpoint.open)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread goes on and would hold the server for nobody.

            def let_go(done: asyncio.Future[str]) -> None:
                if done.exception() is None:
                    self.endpoint.close()

            work.add_done_callback(let_go)
            raise

    async def _watch_loop(self) -> None:
        """Have the channel closed when the loop ends: asyncio.run closes the generators that began in its loop.

        An open one keeps a thread of gRPC, with which a fork would not work.
        """
        if self._guard is None:
            self._guard = self._until_loop_ends()
            await anext(self._guard)

    async def _until_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if not self.inherited:
                await self._close_channel()

    async def _close_channel(self) -> None:
        self._retire()
        retired, self._retired = self._retired, []
        for channel in retired:
            await channel.close()

    def _retire(self) -> None:
        """Use the channel no more. Calls on it end as they would: closing it would cancel the tasks that wait."""
        if self.channel is not None:
            self._retired.append(self.channel)
            self.channel = None
            # gRPC ends its thread when the last object of its asyncio part is gone.
            for name in ("sessions", "turns", "inputs", "agents", "server"):
                delattr(self, name)

    def _bind(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.sessions = SessionServiceStub(channel)
        self.turns = TurnServiceStub(channel)
        self.inputs = InputServiceStub(channel)
        self.agents = AgentServiceStub(channel)
        self.server = ServerServiceStub(channel)

    def _method(self, call: Call[Any]) -> Any:
        return getattr(getattr(self, call.service), call.method)


async def open_connection(target: str | None = None, *, project: Path | None = None) -> Connection:
    """Connect to the target, to KARTA_TARGET, or to the server of the project (the current folder).

    The project's own server answers when this returns. Raises KartaError.
    """
    connection = Connection(resolve_target(target), project or Path.cwd())
    try:
        await connection.open()
        if not connection.endpoint.target:
            await _until_ready(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _until_ready(connection: Connection) -> None:
    """A server that was joined may just be ending; then the next one is started."""
    failure: KartaError | None = None
    for _ in range(3):
        assert connection.channel is not None
        try:
            await asyncio.wait_for(connection.channel.channel_ready(), _READY_LIMIT_SECONDS)
            return
        except TimeoutError:
            failure = UnavailableError(f"No answer from {connection.address}.", code="UNAVAILABLE")
        connection.lost = True
        await connection.open()
    assert failure is not None
    raise failure
