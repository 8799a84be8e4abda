"""The server of `karta-runtime dev --state`: like the embedded one, with its state in a folder of your choice."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from karta_client.errors import EmbeddedServerError

_START_SECONDS = 30.0
_LOG_BYTES = 4096


@contextlib.asynccontextmanager
async def serving(project: Path, state: Path) -> AsyncIterator[str]:
    """Join the server that has the state folder, or start one that ends with its last user; yield its address.

    Raises EmbeddedServerError.
    """
    joined = _join(state)
    if joined is None:
        await asyncio.to_thread(_start, project, state)
        joined = _join(state)
    if joined is None:
        raise EmbeddedServerError(f"The server of {state} ended as soon as it had begun.")
    address, hold = joined
    with hold:
        yield address


def _join(state: Path) -> tuple[str, socket.socket] | None:
    """Return the address of the server and a connection that it lives for; None when there is no server."""
    try:
        record = json.loads((state / "server.json").read_text())
    except (OSError, ValueError):
        return None
    hold = socket.socket(socket.AF_UNIX)
    try:
        # One that was not started for its users needs no holding, and takes no harm from it either.
        if record["hold"]:
            hold.connect(record["hold"])
        return record["address"], hold
    except OSError:
        hold.close()
        return None


def _start(project: Path, state: Path) -> None:
    """Start a server; returns when it serves."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state / "server.log"
    # -P: modules in the current folder must not take the place of installed ones.
    module = [sys.executable, "-P", "-m", "karta_server.cli"]
    with path.open("ab") as log:
        child = subprocess.Popen(
            [*module, "dev-serve", str(project), "--state", str(state), "--listen", "127.0.0.1:0", "--embedded"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert child.stdout
    limit = threading.Timer(_START_SECONDS, child.kill)
    limit.start()
    with child.stdout as output:
        line = output.readline()
    limit.cancel()
    if not line:
        child.wait()
        tail = path.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip()
        raise EmbeddedServerError(f"The server of {state} did not start.", log=tail)
