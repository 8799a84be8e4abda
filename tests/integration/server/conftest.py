"""A server with the scripted harness, in this process, and a client of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from server_api import Api

from karta_server.config import load
from karta_server.server import Server


@pytest.fixture
async def server(project: Path) -> AsyncIterator[Server]:
    """A server of a project, started; `address` is where."""
    config = load(project, listen="127.0.0.1:0", harness="scripted", interrupt_seconds=2.0)
    config.state.mkdir()
    made = Server(config)
    made.address = await made.start()  # type: ignore[attr-defined]
    yield made
    await made.stop(0)


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    """A client of the server."""
    async with grpc.aio.insecure_channel(server.address) as channel:  # type: ignore[attr-defined]
        yield Api(channel)
