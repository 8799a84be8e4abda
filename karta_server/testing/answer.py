"""A scripted answer in the shape of the Anthropic Messages API, as a stream of events."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from karta_server.testing.conversation import Blocks, input_tokens, output_tokens
from karta_server.testing.script import block_kind

DELTA_CHARACTERS = 12
MAX_DELTAS = 500

Event = dict[str, Any]


class DroppedError(Exception):
    """The script says that the connection breaks here."""


async def stream_events(body: dict[str, Any], blocks: Blocks) -> AsyncIterator[Event]:
    """Yield the events of a streamed answer, in the time that the script says.

    Raises DroppedError where the script drops the connection. An `error` event is
    the last one.
    """
    yield {"type": "message_start", "message": _message(body, [], None, 1)}
    index = 0
    for block in blocks:
        kind = block_kind(block)
        if kind == "delay":
            await asyncio.sleep(block["delay"])
        elif kind == "drop":
            raise DroppedError
        elif kind == "sse_error":
            yield error_body(block["sse_error"], block.get("message", "scripted error in the stream"))
            return
        elif kind != "stop":
            async for event in _content_events(index, block):
                yield event
            index += 1
    usage = _usage(body, output_tokens(blocks))
    yield {"type": "message_delta", "delta": {"stop_reason": _stop(blocks), "stop_sequence": None}, "usage": usage}
    yield {"type": "message_stop"}


async def whole_message(body: dict[str, Any], blocks: Blocks) -> dict[str, Any]:
    """Return the answer of a call that does not stream; raises DroppedError."""
    content: Blocks = []
    for block in blocks:
        kind = block_kind(block)
        if kind == "delay":
            await asyncio.sleep(block["delay"])
        elif kind in ("drop", "sse_error"):
            raise DroppedError
        elif kind == "think":
            content.append({"type": "thinking", "thinking": block["think"], "signature": "c2ln"})
        elif kind == "text":
            content.append({"type": "text", "text": block["text"]})
        elif kind == "tool":
            content.append({**_tool_block(block), "input": block.get("input", {})})
    return _message(body, content, _stop(blocks), output_tokens(blocks))


def error_body(kind: str, message: str) -> Event:
    """Return an error of the API."""
    return {"type": "error", "error": {"type": kind, "message": message}}


async def _content_events(index: int, block: dict[str, Any]) -> AsyncIterator[Event]:
    start, deltas = _content(block)
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for number, delta in enumerate(deltas):
        if number:
            await asyncio.sleep(block.get("pace", 0))
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def _content(block: dict[str, Any]) -> tuple[Event, list[Event]]:
    if "think" in block:
        thoughts = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(block["think"])]
        signature = {"type": "signature_delta", "signature": "c2ln"}
        return {"type": "thinking", "thinking": "", "signature": ""}, [*thoughts, signature]
    if "text" in block:
        return {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"])]
    arguments = json.dumps(block.get("input", {}))
    return _tool_block(block), [{"type": "input_json_delta", "partial_json": piece} for piece in _pieces(arguments)]


def _tool_block(block: dict[str, Any]) -> Event:
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(10)}", "name": block["tool"], "input": {}}


def _pieces(text: str) -> list[str]:
    size = max(DELTA_CHARACTERS, -(-len(text) // MAX_DELTAS))
    return [text[at : at + size] for at in range(0, len(text), size)]


def _stop(blocks: Blocks) -> str:
    default = "tool_use" if any("tool" in block for block in blocks) else "end_turn"
    return next((str(block["stop"]) for block in blocks if "stop" in block), default)


def _message(body: dict[str, Any], content: Blocks, stop: str | None, tokens: int) -> Event:
    return {
        "id": f"msg_{secrets.token_hex(10)}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": _usage(body, tokens),
    }


def _usage(body: dict[str, Any], tokens: int) -> dict[str, int]:
    cache = {"cache_creation_input_tokens": 7, "cache_read_input_tokens": 11}
    return {"input_tokens": input_tokens(body), **cache, "output_tokens": tokens}
