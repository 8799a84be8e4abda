"""What a client is told once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from karta_client.connection import Connection
from karta_client.endpoint import resolve_target
from karta_client.input import InputCallback
from karta_client.sync_connection import SyncConnection


@dataclass(frozen=True)
class Settings:
    """Shared by a Karta and its asyncio twin."""

    target: str
    project: Path
    on_input: InputCallback | None
    reconnect_timeout: float
    traceparent: str

    @classmethod
    def make(
        cls,
        target: str | None,
        project: str | Path | None,
        on_input: InputCallback | None,
        reconnect_timeout: float,
        traceparent: str,
    ) -> Settings:
        """Raises InvalidArgumentError for a malformed target. Does no I/O."""
        folder = Path(project) if project is not None else Path.cwd()
        return cls(resolve_target(target), folder, on_input, reconnect_timeout, traceparent)

    def connect(self) -> Connection:
        """Return a connection for one event loop, not yet open."""
        return Connection(self.target, self.project, reconnect_timeout=self.reconnect_timeout, trace=self.traceparent)

    def connect_sync(self, channel: grpc.Channel | None = None) -> SyncConnection:
        """Return a connection for threads, not yet open; over that channel if one is given."""
        return SyncConnection(
            self.target,
            self.project,
            reconnect_timeout=self.reconnect_timeout,
            trace=self.traceparent,
            channel=channel,
        )
