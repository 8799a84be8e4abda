"""Streams of events that survive a lost connection or a restart of the server: they go on behind the last event."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from karta import v1
from karta_client.cursor import Cursor
from karta_client.errors import KartaError

if TYPE_CHECKING:
    from karta_client.connection import Connection


async def watch(connection: "Connection", cursor: Cursor) -> AsyncGenerator[list[v1.Event], None]:
    """Yield the events behind the cursor in order, in groups, until it is done. Raises KartaError."""
    while not cursor.done:
        failure = None
        try:
            frames = cast("AsyncGenerator[Any, None]", connection.frames(cursor.call()))
            async with aclosing(frames):
                async for frame in frames:
                    if events := cursor.accept(frame):
                        yield events
                    if cursor.done:
                        return
        except KartaError as error:
            failure = error
        pause = cursor.lost(failure)
        if not cursor.done:
            await asyncio.sleep(pause)
