"""What grpc.aio does by itself: one event a message, nothing stored, no interceptor."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from karta import v1
from tests.bench import payload


class Bare:
    """The methods, as a servicer has them."""

    def __init__(self) -> None:
        self._watchers: list[asyncio.Queue[v1.Event]] = []

    async def stream(self, request: v1.RunTurnRequest, context: Any) -> AsyncIterator[v1.Event]:
        """Answer with the pieces of the message, one event each."""
        # One message whose fields are set: the cheapest way to make events in Python.
        event = payload.event()
        for sequence, piece in enumerate(payload.pieces(request.start.message.parts[0].text), start=1):
            _set(event, sequence, piece)
            yield event

    async def watch(self, request: v1.WatchSessionRequest, context: Any) -> AsyncIterator[v1.Event]:
        """Stream what is published; an event without text says that it begins."""
        queue: asyncio.Queue[v1.Event] = asyncio.Queue()
        self._watchers.append(queue)
        try:
            yield payload.event()
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)

    async def idle(self, request: v1.WatchSessionRequest, context: Any) -> AsyncIterator[v1.Event]:
        """Stream an event, and then nothing: the least that an open stream can hold."""
        yield payload.event()
        await asyncio.get_running_loop().create_future()

    async def publish(self, request: v1.RunTurnRequest, context: Any) -> v1.StartTurnResponse:
        """Give every watcher the pieces of the message."""
        for sequence, piece in enumerate(payload.pieces(request.start.message.parts[0].text), start=1):
            event = payload.event()
            _set(event, sequence, piece)
            for queue in self._watchers:
                queue.put_nowait(event)
            await asyncio.sleep(0)
        return v1.StartTurnResponse()

    async def echo(self, request: v1.RespondToInputRequest, context: Any) -> v1.RespondToInputResponse:
        """Answer at once."""
        return v1.RespondToInputResponse()


def _set(event: v1.Event, sequence: int, piece: str) -> None:
    event.sequence = sequence
    event.create_time.seconds, event.create_time.nanos = divmod(time.time_ns(), 1_000_000_000)
    event.text.text = piece


def _handlers(bare: Bare) -> grpc.GenericRpcHandler:
    """What generated code would register."""
    return grpc.method_handlers_generic_handler(
        "bench.Bare",
        {
            "Stream": grpc.unary_stream_rpc_method_handler(
                bare.stream, v1.RunTurnRequest.FromString, v1.Event.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                bare.watch, v1.WatchSessionRequest.FromString, v1.Event.SerializeToString
            ),
            "Idle": grpc.unary_stream_rpc_method_handler(
                bare.idle, v1.WatchSessionRequest.FromString, v1.Event.SerializeToString
            ),
            "Publish": grpc.unary_unary_rpc_method_handler(
                bare.publish, v1.RunTurnRequest.FromString, v1.StartTurnResponse.SerializeToString
            ),
            "Echo": grpc.unary_unary_rpc_method_handler(
                bare.echo, v1.RespondToInputRequest.FromString, v1.RespondToInputResponse.SerializeToString
            ),
        },
    )


async def main() -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_handlers(Bare()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"READY 127.0.0.1:{port}", flush=True)  # noqa: T201
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
