"""Events as Server-Sent Events, nothing stored: `sse.py sse-starlette` or `sse.py fastapi`.

Runs in an environment of its own, so it imports nothing of the project. Ready
as `READY host:port`.
"""

import asyncio
import json
import re
import socket
import sys
import time

import uvicorn

_PIECE = re.compile(r"\s*\S+|\s+\Z")
_EVENT = {
    "sequence": 0,
    "session_id": "0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b",
    "turn_id": "0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5c",
    "create_time": 0.0,
    "source": "agent",
    "step": 1,
    "part_id": "1.0",
    "text": "",
}


async def events(text):
    """The same events as those of Karta."""
    event = dict(_EVENT)
    for sequence, piece in enumerate(_PIECE.findall(f"echo[1]: {text}"), start=1):
        event["sequence"] = sequence
        event["create_time"] = time.time()
        event["text"] = piece
        yield event


def sse_starlette():
    """An application whose stream is made by sse-starlette."""
    from sse_starlette import EventSourceResponse, ServerSentEvent
    from starlette.applications import Starlette
    from starlette.routing import Route

    async def stream(request):
        text = (await request.json())["text"]

        async def sent():
            async for event in events(text):
                yield ServerSentEvent(data=json.dumps(event, separators=(",", ":")), event="text")

        return EventSourceResponse(sent())

    return Starlette(routes=[Route("/turns", stream, methods=["POST"])])


def fastapi():
    """An application whose stream is made by FastAPI."""
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse, ServerSentEvent
    from pydantic import BaseModel

    class Turn(BaseModel):
        text: str

    app = FastAPI()

    @app.post("/turns", response_class=EventSourceResponse)
    async def stream(turn: Turn):
        async for event in events(turn.text):
            yield ServerSentEvent(data=event, event="text")

    return app


async def serve(app):
    """Serve with uvicorn, uvloop and httptools, its fastest way, without an access log."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=600)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listening]))
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print(f"READY 127.0.0.1:{listening.getsockname()[1]}", flush=True)  # noqa: T201
    await task


if __name__ == "__main__":
    made = {"sse-starlette": sse_starlette, "fastapi": fastapi}[sys.argv[1]]()
    with asyncio.Runner(loop_factory=uvicorn.Config(made).get_loop_factory()) as runner:
        runner.run(serve(made))
