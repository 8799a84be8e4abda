"""Live harness sessions: which conversations have a process, and for how long.

A turn leases its session's harness. Between turns it stays warm, until it was
idle for long or another session needs the place; the next turn then goes on
from the memory that the store keeps.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from karta_server.harness.contract import HarnessAdapter, HarnessSession
from karta_server.storage.contract import SessionKey

log = logging.getLogger(__name__)


class _Warm:
    """A harness session that waits for the next turn."""

    def __init__(self, session: HarnessSession, since: float) -> None:
        self.session = session
        self.since = since


class Supervisor:
    """Owns the live harness sessions of a server."""

    def __init__(
        self,
        adapters: Mapping[str, HarnessAdapter],
        memory: Callable[[SessionKey], Awaitable[bytes]],
        max_live: int,
        idle_seconds: float,
    ) -> None:
        self._adapters = adapters
        self._memory = memory
        self._idle_seconds = idle_seconds
        self._places = asyncio.Semaphore(max_live)
        self._waiting = 0
        self._warm: OrderedDict[SessionKey, _Warm] = OrderedDict()
        self._closing: dict[SessionKey, asyncio.Future[None]] = {}
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to close what was idle for long."""
        self._sweeper = asyncio.create_task(self._sweep(), name="close idle harnesses")

    @contextlib.asynccontextmanager
    async def lease(self, key: SessionKey, harness: str) -> AsyncGenerator[HarnessSession, None]:
        """Give a turn its session's harness, opened from memory when it is not warm.

        Waits for a place when all are taken by running turns. The session is
        closed when the turn fails with an exception, and kept otherwise.
        """
        while (closing := self._closing.get(key)) is not None:
            # Two processes must not go on with one conversation.
            await asyncio.wait({closing})
        warm = self._warm.pop(key, None)
        session = warm.session if warm is not None else await self._open(key, harness)
        try:
            yield session
        except BaseException:
            await self._close(key, session)
            raise
        if self._waiting and self._places.locked():
            await self._close(key, session)
        else:
            self._warm[key] = _Warm(session, asyncio.get_running_loop().time())

    async def discard(self, key: SessionKey) -> None:
        """Close a session's harness if it is warm."""
        warm = self._warm.pop(key, None)
        if warm is not None:
            await self._close(key, warm.session)

    async def close(self) -> None:
        """Close everything; turns must have ended."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await asyncio.gather(*(self.discard(key) for key in list(self._warm)))
        for adapter in self._adapters.values():
            await adapter.close()

    async def _open(self, key: SessionKey, harness: str) -> HarnessSession:
        self._waiting += 1
        try:
            if self._places.locked() and self._warm:
                idle, oldest = self._warm.popitem(last=False)
                await self._close(idle, oldest.session)
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._adapters[harness].open(key.session_id, await self._memory(key))
        except BaseException:
            self._places.release()
            raise

    async def _close(self, key: SessionKey, session: HarnessSession) -> None:
        # The turn that ends may be cancelled; its processes are closed all the same.
        closing = self._closing[key] = asyncio.ensure_future(session.close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait({closing})
            raise
        finally:
            del self._closing[key]
            self._places.release()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            oldest = next(iter(self._warm.values()), None)
            if oldest is None:
                await asyncio.sleep(self._idle_seconds)
                continue
            remaining = oldest.since + self._idle_seconds - loop.time()
            if remaining > 0:
                await asyncio.sleep(remaining)
                continue
            key, expired = self._warm.popitem(last=False)
            log.info("session %s was idle; its harness is closed", key.session_id)
            await self._close(key, expired.session)
