"""Performing flows and streams: the blocking way and the asyncio way, side by side."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from typing import Any, TypeVar

from karta import v1
from karta_client import flows
from karta_client.calls import Call
from karta_client.connection import Connection
from karta_client.cursor import Cursor
from karta_client.errors import KartaError
from karta_client.event import Event
from karta_client.flows import Ask, Flow, Reply, Step
from karta_client.input import as_question, check_response
from karta_client.sync_connection import SyncConnection

R = TypeVar("R")


def perform(connection: SyncConnection, flow: Flow[R]) -> R:
    """Perform the flow and return its result."""
    result: Any = None
    failure: KartaError | None = None
    while True:
        try:
            step = flow.send(result) if failure is None else flow.throw(failure)
        except StopIteration as stop:
            value: R = stop.value
            return value
        result = failure = None
        try:
            result = _step(connection, step)
        except KartaError as error:
            failure = error


def events(connection: SyncConnection, prepare: Flow[Cursor], reply: Reply) -> Generator[Event, None, None]:
    """Yield what the prepared cursor points to; input requests go to the callback, if there is one."""
    cursor = perform(connection, prepare)
    with closing(_follow(connection, cursor)) as found:
        for raw in found:
            yield Event(raw, reply.answerable)
            if raw.HasField("input_required"):
                perform(connection, flows.answer(raw.input_required.input_request, reply))


def _follow(connection: SyncConnection, cursor: Cursor) -> Generator[v1.Event, None, None]:
    while not cursor.done:
        failure: KartaError | None = None
        try:
            with closing(connection.frames(cursor.call())) as frames:
                for frame in frames:
                    yield from cursor.accept(frame)
                    if cursor.done:
                        return
        except KartaError as error:
            failure = error
        time.sleep(cursor.lost(failure))


def _step(connection: SyncConnection, step: Step) -> Any:
    if isinstance(step, Call):
        return connection.call(step)
    if isinstance(step, Ask):
        response = step.callback(as_question(step.request))
        return check_response(_run(response) if inspect.isawaitable(response) else response)
    return time.sleep(step.seconds)


def _run(awaitable: Awaitable[R]) -> R:
    async def main() -> R:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    # A blocking call inside of a running loop: its callback gets a loop in a thread.
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, asyncio.run, main()).result()


async def perform_async(connection: Connection, flow: Flow[R]) -> R:
    """Perform the flow and return its result."""
    result: Any = None
    failure: KartaError | None = None
    while True:
        try:
            step = flow.send(result) if failure is None else flow.throw(failure)
        except StopIteration as stop:
            value: R = stop.value
            return value
        result = failure = None
        try:
            result = await _step_async(connection, step)
        except KartaError as error:
            failure = error


async def events_async(connection: Connection, prepare: Flow[Cursor], reply: Reply) -> AsyncGenerator[Event, None]:
    """Yield what the prepared cursor points to; input requests go to the callback, if there is one."""
    cursor = await perform_async(connection, prepare)
    async with aclosing(_follow_async(connection, cursor)) as found:
        async for raw in found:
            yield Event(raw, reply.answerable)
            if raw.HasField("input_required"):
                await perform_async(connection, flows.answer(raw.input_required.input_request, reply))


async def _follow_async(connection: Connection, cursor: Cursor) -> AsyncGenerator[v1.Event, None]:
    while not cursor.done:
        failure: KartaError | None = None
        try:
            async with aclosing(connection.frames(cursor.call())) as frames:
                async for frame in frames:
                    for event in cursor.accept(frame):
                        yield event
                    if cursor.done:
                        return
        except KartaError as error:
            failure = error
        await asyncio.sleep(cursor.lost(failure))


async def _step_async(connection: Connection, step: Step) -> Any:
    if isinstance(step, Call):
        return await connection.call(step)
    if isinstance(step, Ask):
        question = as_question(step.request)
        plain = not inspect.iscoroutinefunction(step.callback)
        response = await asyncio.to_thread(step.callback, question) if plain else step.callback(question)
        return check_response(await response if inspect.isawaitable(response) else response)
    return await asyncio.sleep(step.seconds)
