"""Where the server is, and what both kinds of connection to it share."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import grpc

from karta_client import embedded
from karta_client.cursor import Backoff
from karta_client.errors import InvalidArgumentError, KartaError, UnavailableError, from_rpc
from karta_client.trace import traceparent

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_FIRST_REACH_LIMIT_SECONDS = 5.0

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is noticed within 40 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A channel's sockets are its own: a forked child must never share them.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that is restarted is found again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


def resolve_target(target: str | None) -> str:
    """Return the target given, else that of KARTA_TARGET, else "" for the project's own server.

    Raises InvalidArgumentError unless it is HOST:PORT or unix:/PATH.
    """
    found = target or os.environ.get("KARTA_TARGET", "")
    host, colon, rest = found.partition(":")
    if found and not (colon and host and rest and not rest.startswith("//")):
        message = f'The target {found!r} is not an address: write "HOST:PORT" or "unix:/PATH".'
        raise InvalidArgumentError(
            message, reason="FIELD_INVALID", code="INVALID_ARGUMENT", metadata={"field": "target"}
        )
    return found


class Endpoint:
    """Where the server is: an address, or the server of a project, which is held while in use."""

    def __init__(self, target: str, project: Path, state: Path | None = None) -> None:
        self.target = target
        self.project = project
        self.state = state
        self.reached = False
        self._server: embedded.EmbeddedServer | None = None

    def open(self) -> str:
        """Return the address; starts the project's server when that is meant. May block up to 30 s."""
        if self.target:
            return self.target
        if self._server is None:
            self._server = embedded.acquire(self.project, self.state)
        else:
            self._server.ensure()
        return self._server.address

    def close(self) -> None:
        """Let go of the project's server; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            embedded.release(server)


def channel_options(address: str) -> list[tuple[str, int]]:
    local = address.startswith(("unix:", "localhost:", "127.", "[::1]:"))
    return [*_OPTIONS, ("grpc.enable_http_proxy", 0)] if local else _OPTIONS


class ConnectionBase:
    """What both kinds of connection share."""

    def __init__(
        self, target: str, project: Path, reconnect_timeout: float, trace: str, state: Path | None = None
    ) -> None:
        self.endpoint = Endpoint(target, project, state)
        self._reconnect_timeout = reconnect_timeout
        self._trace = trace
        self._address = ""
        self.lost = False
        self._pid = os.getpid()
        _open.add(self)

    @property
    def address(self) -> str:
        """Where the server listens; empty before the first call."""
        return self._address

    @property
    def inherited(self) -> bool:
        """Whether it belongs to the process that this one was forked from: it must not be used here."""
        return self._pid != os.getpid()

    def backoff(self) -> Backoff:
        """Return the pauses for one operation. A server that was never reached is given up sooner."""
        limit = self._reconnect_timeout
        return Backoff(lambda: limit if self.endpoint.reached else min(limit, _FIRST_REACH_LIMIT_SECONDS))

    def failed(self, error: grpc.RpcError) -> KartaError:
        """Name the failure; after one of the connection, the next call looks for the server anew."""
        failure = from_rpc(error)
        self.lost = self.lost or isinstance(failure, UnavailableError)
        return failure

    def succeeded(self) -> None:
        self.endpoint.reached = True

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """Return the metadata of a call made now."""
        trace = self._trace or traceparent.get()
        return (("traceparent", trace),) if trace else None


_open: weakref.WeakSet[ConnectionBase] = weakref.WeakSet()
_inherited: list[ConnectionBase] = []


def _forget_in_child() -> None:
    """After a fork: keep the parent's channels, so that nothing closes them here."""
    _inherited.extend(_open)
    _open.clear()


os.register_at_fork(after_in_child=_forget_in_child)
