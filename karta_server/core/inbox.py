"""What waits between a harness and the log."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from karta import v1

# Then the harness is held back.
_MAX_WAITING_EVENTS = 256


class Inbox:
    """Collects the events of a turn while earlier ones are written, in a task of its own."""

    def __init__(self, source: AsyncGenerator[v1.Event, None]) -> None:
        self._waiting: list[v1.Event] = []
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._pump = asyncio.create_task(self._fill(source))
        self._pump.add_done_callback(lambda _: self._arrived.set())

    async def take(self) -> list[v1.Event]:
        """Return what waits, at least one event; nothing at the end. Raises what the harness raised."""
        while not self._waiting:
            if self._pump.done():
                self._pump.result()
                return []
            self._arrived.clear()
            await self._arrived.wait()
        batch, self._waiting = self._waiting, []
        self._taken.set()
        return batch

    async def close(self) -> None:
        """End the harness's iterator."""
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)

    async def _fill(self, source: AsyncGenerator[v1.Event, None]) -> None:
        async with contextlib.aclosing(source):
            async for event in source:
                self._waiting.append(event)
                self._arrived.set()
                if len(self._waiting) >= _MAX_WAITING_EVENTS:
                    self._taken.clear()
                    await self._taken.wait()
