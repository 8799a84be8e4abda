"""The connection of blocking code: the channel to a server, and its stubs."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc

from karta.v1.agent_service_pb2_grpc import AgentServiceStub
from karta.v1.input_service_pb2_grpc import InputServiceStub
from karta.v1.server_service_pb2_grpc import ServerServiceStub
from karta.v1.session_service_pb2_grpc import SessionServiceStub
from karta.v1.turn_service_pb2_grpc import TurnServiceStub
from karta_client.calls import Call, Frame
from karta_client.endpoint import ConnectionBase, channel_options
from karta_client.errors import UnavailableError

R = TypeVar("R")


class SyncConnection(ConnectionBase):
    """A connection for threads. Opens itself with the first call; any thread may use it.

    With a `channel` of the caller's own it uses and never closes that.
    """

    def __init__(
        self,
        target: str,
        project: Path,
        *,
        reconnect_timeout: float = 60.0,
        trace: str = "",
        channel: grpc.Channel | None = None,
    ) -> None:
        super().__init__(target, project, reconnect_timeout, trace)
        self.channel: grpc.Channel | None = None
        self._owned = channel is None
        self._lock = threading.Lock()
        if channel is not None:
            self._bind(channel)

    def call(self, call: Call[R]) -> R:
        """Make a unary call; repeats it while the server is away. Raises KartaError."""
        backoff = self.backoff()
        while True:
            try:
                self.open()
                answer: R = self._method(call)(call.request, timeout=call.timeout_seconds, metadata=self.metadata())
            except grpc.RpcError as error:
                failure = self.failed(error)
            else:
                self.succeeded()
                return answer
            if not isinstance(failure, UnavailableError):
                raise failure
            time.sleep(backoff.next(failure))

    def frames(self, call: Call[Frame]) -> Generator[Frame, None, None]:
        """Open a stream once and yield its frames. Raises KartaError; closing the iterator cancels the call."""
        self.open()
        stream = self._method(call)(call.request, timeout=call.timeout_seconds, metadata=self.metadata())
        try:
            yield from self._translated(stream)
        finally:
            stream.cancel()

    def open(self) -> None:
        """Connect when that is not done; looks after the project's server. Raises EmbeddedServerError."""
        if not self._owned or (self.channel is not None and not self.lost):
            return
        with self._lock:
            self.lost = False
            address = self.endpoint.open()
            if self.channel is None or address != self._address:
                self._close_channel()
                self._address = address
                self._bind(grpc.insecure_channel(address, options=channel_options(address)))

    def close(self) -> None:
        """End what is open, streams with it; idempotent. A later call opens it again."""
        if self.inherited:
            return
        with self._lock:
            self._close_channel()
            self.endpoint.close()

    def _translated(self, stream: Iterator[Frame]) -> Iterator[Frame]:
        while True:
            try:
                frame = next(stream, None)
            except grpc.RpcError as error:
                raise self.failed(error) from None
            if frame is None:
                return
            self.succeeded()
            yield frame

    def _bind(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.sessions = SessionServiceStub(channel)
        self.turns = TurnServiceStub(channel)
        self.inputs = InputServiceStub(channel)
        self.agents = AgentServiceStub(channel)
        self.server = ServerServiceStub(channel)

    def _close_channel(self) -> None:
        if self._owned and self.channel is not None:
            self.channel.close()
            self.channel = None

    def _method(self, call: Call[Any]) -> Any:
        return getattr(getattr(self, call.service), call.method)
