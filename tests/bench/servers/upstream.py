"""karta-runtime 0.1.0's own server, with a harness in its process that answers at once: what is measured is its
pipeline alone. Runs in an environment of its own. `upstream.py FOLDER` is ready as `READY host:port`."""

import asyncio
import re
import socket
import sys
import time
from pathlib import Path

import uvicorn

from karta.app import Karta
from karta.harness.base import AgentDefinition, HarnessAdapter, TurnResult
from karta.response import StreamEvent, Usage
from karta.server.fastapi_app import create_fastapi_app

_PIECE = re.compile(r"\s*\S+|\s+\Z")


class Echo(HarnessAdapter):
    """Answers with the words of the message, a delta each: not the growing text that its adapters send."""

    def discover_agents(self):
        return {"echo": AgentDefinition(name="echo")}

    def load_shared_context(self):
        return ""

    def discover_skills(self):
        return {}

    def config(self):
        return {}

    def resolve_default_agent(self, agents):
        return agents["echo"]

    async def run_turn(self, **_):
        return TurnResult(text="", usage=Usage())

    async def stream_turn(self, *, session_id, agent, text, **_):
        for number, piece in enumerate(_PIECE.findall(f"echo[1]: {text}"), start=1):
            yield StreamEvent(
                type="text",
                source="echo",
                session_id=session_id,
                timestamp=int(time.time() * 1000),
                data={"sequence": number, "part": {"id": "1.0", "messageID": "m", "type": "text", "text": piece}},
            )


async def serve(app):
    """Serve as `karta-runtime` does, without an access log."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=600))
    task = asyncio.create_task(server.serve([listening]))
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print(f"READY 127.0.0.1:{listening.getsockname()[1]}", flush=True)  # noqa: T201
    await task


if __name__ == "__main__":
    made = create_fastapi_app(Karta(sys.argv[1], harness=Echo(Path(sys.argv[1]))))
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(made))
