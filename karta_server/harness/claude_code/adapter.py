"""Claude Code as a harness, through claude-agent-sdk."""

import asyncio
import importlib
from typing import ClassVar

from karta import v1
from karta_server.errors import KartaError
from karta_server.harness.claude_code.agents import read_agents
from karta_server.harness.claude_code.program import find_program, program_version
from karta_server.harness.contract import HarnessAdapter, HarnessSession

_CAPABILITIES = v1.HarnessCapabilities(
    deltas=True,
    interrupt=True,
    approvals=True,
    updated_input=True,
    deny_message=True,
    questions=True,
    agents=True,
    resume=True,
    cost=True,
)


class ClaudeCodeAdapter(HarnessAdapter):
    """Claude Code, as it works outside of Karta: its login, settings, agents, skills and MCP servers.

    Options: `cli_path`, the program to run instead of the one that the SDK brings.
    """

    name: ClassVar[str] = "claude_code"
    markers: ClassVar[tuple[str, ...]] = (".claude", "CLAUDE.md")

    async def describe(self) -> v1.Harness:
        """Return what is installed; the SDK is not imported for it."""
        program = find_program(self.settings)
        harness = v1.Harness(name=self.name, unavailable_reason=program.missing, capabilities=_CAPABILITIES)
        if program.path is not None:
            harness.available = True
            harness.version = await program_version(program.path, self.settings)
        return harness

    async def agents(self) -> list[v1.Agent]:
        """Return the agents of `.claude/agents`, the project's before the user's own."""
        return await asyncio.to_thread(read_agents, self.settings)

    async def open(self, session_id: str, memory: bytes) -> HarnessSession:
        """Begin or go on with a conversation; raises KartaError HARNESS_NOT_INSTALLED."""
        program = find_program(self.settings)
        if program.path is None:
            message = f"Claude Code is not installed: {program.missing}"
            raise KartaError(v1.ERROR_REASON_HARNESS_NOT_INSTALLED, message, harness=self.name)
        # The SDK takes half a second to import: only who opens a session pays for it, and nobody else waits.
        session = await asyncio.to_thread(importlib.import_module, "karta_server.harness.claude_code.session")
        opened: HarnessSession = session.ClaudeCodeSession(self.settings, program.path, session_id, memory)
        return opened
