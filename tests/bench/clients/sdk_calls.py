"""Claude Code driven by ClaudeSDKClient alone, with the options that matter as Karta sets them."""

import time
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, PermissionResultDeny, ResultMessage

from karta_server.testing.offline_model import offline_environment
from tests.bench.payload import LostEventsError


class SdkTurns:
    """One conversation; `address` is that of the offline model."""

    def __init__(self, address: str, turns: int) -> None:
        self._address, self._turns = address, turns

    async def open(self) -> None:
        """Start Claude Code in a folder of its own."""
        folder = Path.home() / "claude"  # The client's home is a temporary folder of the runner.
        (folder / "project").mkdir(parents=True)
        options = ClaudeAgentOptions(
            cwd=folder / "project",
            env=offline_environment(folder / "home", self._address),
            system_prompt={"type": "preset", "preset": "claude_code", "snapshot": False},
            can_use_tool=_deny,
            include_partial_messages=True,
            forward_subagent_text=True,
        )
        self._client = ClaudeSDKClient(options)
        await self._client.connect()

    async def close(self) -> None:
        """End Claude Code."""
        await self._client.disconnect()

    async def run(self) -> dict[str, Any]:
        """Send messages, one after another."""
        latencies = [await self._turn() for _ in range(self._turns)]
        return {"count": self._turns, "seconds": sum(latencies), "latencies": latencies}

    async def _turn(self) -> float:
        begin = time.perf_counter()
        await self._client.query("hello")
        result = None
        async for message in self._client.receive_response():
            result = message
        took = time.perf_counter() - begin
        if not isinstance(result, ResultMessage) or not (result.result or "").endswith("hello"):
            raise LostEventsError(f"the turn ended with {result!r}")
        return took


async def _deny(*_: Any) -> PermissionResultDeny:
    return PermissionResultDeny(message="a benchmark's turn uses no tools")
