"""What the offline model reads in a request of the Anthropic Messages API, and what it answers.

Stateless: the script to follow is the last one that the user sent, and the
place in it is the number of assistant messages since.
"""

import json
import re
from typing import Any

from karta_server.testing.script import find_script

# Claude Code writes these into the conversation on its own; they are no words of the user.
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)
_SYNTHETIC = (
    "[Request interrupted by user",
    "Your response above was cut off",
    "Output token limit hit",
    "Continue from where you left off",
    "This session is being continued from a previous conversation",
    "<command-",
    "<local-command-",
    "<task-notification",
)

Blocks = list[dict[str, Any]]


def answer_blocks(body: dict[str, Any]) -> Blocks:
    """Return the blocks that answer a request; raises ValueError for a malformed script."""
    if body.get("system") and not body.get("tools"):
        return [{"text": "scripted title"}]
    prompts, calls = read_conversation(body)
    text = prompts[-1] if prompts else ""
    script = find_script(text)
    if script is None:
        return [{"text": f"echo[{len(prompts)}]: {text}"}]
    return script[calls] if calls < len(script) else [{"text": "the script has no more to say"}]


def script_key(body: dict[str, Any]) -> str:
    """Return what identifies the script and the place in it, for counting failures."""
    prompts, calls = read_conversation(body)
    return f"{calls}:{prompts[-1] if prompts else ''}"


def read_conversation(body: dict[str, Any]) -> tuple[list[str], int]:
    """Return the user's prompts in order, and the number of assistant messages since the last."""
    prompts: list[str] = []
    calls = 0
    for message in body["messages"]:
        # There are messages of role "system", too: what the harness tells the model about its surroundings.
        calls += message["role"] == "assistant"
        for text in _texts(message["content"]) if message["role"] == "user" else ():
            words = _REMINDER.sub("", text).strip()
            if words and not words.startswith(_SYNTHETIC):
                prompts.append(words)
                calls = 0
    return prompts, calls


def input_tokens(body: dict[str, Any]) -> int:
    """Return a stable number of input tokens: it grows with the conversation, not with the harness's own prompt."""
    prompts, _ = read_conversation(body)
    return 100 + 10 * len(body["messages"]) + sum(len(prompt) for prompt in prompts) // 4


def output_tokens(blocks: Blocks) -> int:
    """Return a stable number of output tokens: a fourth of the characters, at least 1."""
    size = sum(len(block.get("text") or block.get("think") or "") for block in blocks)
    size += sum(len(json.dumps(block.get("input", {}))) for block in blocks if "tool" in block)
    return max(1, size // 4)


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [block["text"] for block in content if block.get("type") == "text"]
