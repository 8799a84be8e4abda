"""A server process: what surrounds a Server, from its state directory to the signal that ends it."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

from karta import v1
from karta_server.config import Config
from karta_server.errors import KartaError
from karta_server.hold import Hold
from karta_server.server import Server
from karta_server.sockets import private_folder, private_umask, remove_stale
from karta_server.storage.lock import StateLock

_EMBEDDED_DRAIN_SECONDS = 2.0
RECORD_NAME = "server.json"
"""In the state directory while a server serves: {"pid", "address", "hold", "version"}."""

_log = logging.getLogger(__name__)


async def host(config: Config, announce: Callable[[str, str], None]) -> None:
    """Serve until a signal or, when embedded, until the last user is gone.

    `announce` gets the bound address and the default harness, once, when the server serves and
    server.json says so. SIGTERM and SIGINT end it gracefully within
    `config.drain_seconds` (embedded: 2 s at most), a second one at once. Raises KartaError when it
    cannot start: STATE_DIRECTORY_IN_USE, CONFIG_INVALID, and what Server.start
    raises. Runs in the main thread, for the signals.
    """
    prepare_folder(config.state)
    with _Signals() as signals, StateLock(config.state):
        record = config.state / RECORD_NAME
        # Of a server that was killed; the lock says that it is gone.
        record.unlink(missing_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            if config.sockets != config.state:
                stack.enter_context(private_folder(config.sockets))
            server, address = await stack.enter_async_context(_serving(config, signals))
            hold = ""
            if config.embedded:
                held = await stack.enter_async_context(Hold(config.sockets / "hold.sock", signals.stop.set))
                hold = str(held.path)
            stack.enter_context(_published(record, address, hold))
            _spare_the_collector()
            announce(address, server.default_harness)
            await signals.stop.wait()


def _spare_the_collector() -> None:
    """Let garbage collection leave alone what is there for good, and come less often: messages hold no cycles.

    Measured: a fifth of the CPU of a busy stream.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def prepare_folder(state: Path) -> None:
    """Make the state directory, for its owner alone and out of version control. Raises KartaError."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        ignore = state / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
    except OSError as error:
        message = f"The state directory {state} cannot be written ({error.strerror}): name another with --state."
        raise KartaError(v1.ERROR_REASON_CONFIG_INVALID, message, setting="state") from error


class _Signals:
    """SIGTERM and SIGINT: the first asks, the second insists, more kill as they always did."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.insisted = False
        self.insist: Callable[[], object] = self.stop.set

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._come)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def _come(self) -> None:
        if self.stop.is_set():
            self.insisted = True
            self._let_go()
            self.insist()
        else:
            _log.warning("stopping: running turns may finish for a while; signal again to stop at once")
        self.stop.set()

    def _let_go(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _serving(config: Config, signals: _Signals) -> AsyncIterator[tuple[Server, str]]:
    socket = Path(config.listen.removeprefix("unix:")) if config.listen.startswith("unix:") else None
    if socket:
        remove_stale(socket)
    server = Server(config)
    with private_umask() if socket else contextlib.nullcontext():
        address = await server.start()
    try:
        yield server, address
    finally:
        # The users of an embedded server are gone, and the next one waits for the folder.
        drain_seconds = min(config.drain_seconds, _EMBEDDED_DRAIN_SECONDS) if config.embedded else config.drain_seconds
        await _stop(server, drain_seconds, signals)
        if socket:
            socket.unlink(missing_ok=True)


async def _stop(server: Server, drain_seconds: float, signals: _Signals) -> None:
    graceful = asyncio.create_task(server.stop(drain_seconds))
    signals.insist = graceful.cancel
    if signals.insisted:
        graceful.cancel()
    try:
        await graceful
    except asyncio.CancelledError:
        _log.warning("stopping at once: running turns are interrupted")
        await server.stop(0)
        if not signals.insisted:
            raise


@contextlib.contextmanager
def _published(record: Path, address: str, hold: str) -> Iterator[None]:
    content = {"pid": os.getpid(), "address": address, "hold": hold, "version": version("karta-grpc")}
    draft = record.with_suffix(".tmp")
    with private_umask():
        draft.write_text(json.dumps(content))
    # Whole or not at all: others read it at any time.
    draft.replace(record)
    try:
        yield
    finally:
        record.unlink(missing_ok=True)
