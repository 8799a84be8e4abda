"""Streams of events. They outlive lost connections and restarts of the server: nothing is lost or comes twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from types import TracebackType
from typing import Self

from karta_client.event import Event


class AsyncStream:
    """Events, to be iterated once with `async for`. Nothing happens before the first is asked for.

    Leaving the loop early, or `aclose`, ends the watching and not the turn.
    """

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await self._events.__anext__()

    async def aclose(self) -> None:
        """Stop watching; idempotent."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Stream:
    """Events, to be iterated once, with `for` or with `async for`. Nothing happens before the first is asked for.

    Leaving the loop early, or `close`, ends the watching and not the turn.
    """

    def __init__(self, events: Callable[[], Generator[Event, None, None]], twin: Callable[[], AsyncStream]) -> None:
        self._open = events
        self._twin = twin
        self._events: Generator[Event, None, None] | None = None

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if self._events is None:
            self._events = self._open()
        return next(self._events)

    def __aiter__(self) -> AsyncIterator[Event]:
        return aiter(self._twin())

    def close(self) -> None:
        """Stop watching; idempotent."""
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
