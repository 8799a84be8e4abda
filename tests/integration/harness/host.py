"""A process that hosts the adapter, for tests that kill it: HOST PROJECT HOME STATE MODEL_URL PROMPT."""

import asyncio
import sys
from pathlib import Path

from karta_server.harness.claude_code import ClaudeCodeAdapter
from karta_server.harness.contract import HarnessSettings, Prompt
from karta_server.testing.offline_model import offline_environment


async def main(project: str, home: str, state: str, model_url: str, prompt: str) -> None:
    settings = HarnessSettings(Path(project), Path(state), offline_environment(Path(home), model_url))
    session = await ClaudeCodeAdapter(settings).open("01920000-0000-7000-8000-00000000000a", b"")
    async for event in session.run_turn(Prompt("t", prompt, "")):
        if event.HasField("input_required"):
            request = event.input_required.input_request
            request.response.allow.SetInParent()
            await session.answer(request)
        sys.stdout.write(f"{event.WhichOneof('kind')}\n")
        sys.stdout.flush()


asyncio.run(main(*sys.argv[1:]))
