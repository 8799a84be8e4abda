"""How a process of Claude Code is started, so that the right agent goes on with the right conversation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claude_agent_sdk import CanUseTool, ClaudeAgentOptions

from karta_server.harness.claude_code.agents import read_agents
from karta_server.harness.claude_code.memory import Memory
from karta_server.harness.contract import HarnessSettings
from karta_server.harness.launcher import write_launcher

MAX_BUFFER_BYTES = 64 * 1024 * 1024
"""The largest message; images in tool results go far beyond the SDK's default of 1 MiB."""

DEFAULT_AGENT = "claude"
"""Claude Code's own name for what answers when no agent is named."""
DEFAULT_MODEL = "default"

# What the SDK itself sets for the program.
_SDK_VARIABLES = ("CLAUDE_CODE_ENTRYPOINT", "CLAUDE_AGENT_SDK_VERSION", "CLAUDE_CODE_SDK_READS_SESSION_STATE", "PWD")


@dataclass(frozen=True)
class Launch:
    """What is decided about a process before it starts."""

    launcher: Path
    conversation: str
    resume: bool
    agent: str
    model: str
    """The model to ask for; empty: whatever Claude Code takes by itself."""
    model_is_default: bool
    """Whether the model that it then says it has is the one of agents that ask for none."""

    def options(self, settings: HarnessSettings, can_use_tool: CanUseTool) -> ClaudeAgentOptions:
        """Return the SDK's options."""
        return ClaudeAgentOptions(
            cli_path=self.launcher,
            cwd=settings.project,
            env=dict(settings.environment),
            # Without a snapshot, because a resumed conversation would keep the prompt of its first agent.
            system_prompt={"type": "preset", "preset": "claude_code", "snapshot": False},
            session_id=None if self.resume else self.conversation,
            resume=self.conversation if self.resume else None,
            model=self.model or None,
            extra_args={"agent": self.agent} if self.agent else {},
            can_use_tool=can_use_tool,
            include_partial_messages=True,
            forward_subagent_text=True,
            max_buffer_size=MAX_BUFFER_BYTES,
        )

    def remember(self, memory: Memory, init: dict[str, Any]) -> None:
        """Take from a process's first message what the next ones need."""
        if self.model_is_default:
            memory.model = str(init.get("model") or "")
        memory.conversation = str(init.get("session_id") or memory.conversation)


def launch(settings: HarnessSettings, program: Path, memory: Memory, agent: str, resume: bool) -> Launch:
    """Decide how a process is started that runs `agent`. Reads and writes files.

    In a resumed conversation Claude Code keeps the agent and the model of
    earlier processes; both are then named, so that a change is a change.
    """
    named = {found.name: found.model for found in read_agents(settings)}
    asks_for_none = not agent or named.get(agent) == ""
    changes = resume and agent != memory.agent
    return Launch(
        launcher=write_launcher(settings.state, program, [*settings.environment, *_SDK_VARIABLES]),
        conversation=memory.conversation,
        resume=resume,
        agent=agent or (DEFAULT_AGENT if memory.agent_is_sticky and resume else ""),
        model=(memory.model or DEFAULT_MODEL) if changes and asks_for_none else "",
        model_is_default=asks_for_none and not resume,
    )
