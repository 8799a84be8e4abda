"""Scripts: what a scripted model or harness does, written into the prompt.

    SCRIPT:[[{"tool": "Bash", "input": {"command": "date"}}], [{"text": "done"}]]END

The outer list has one element for each model call that the prompt leads to;
an element is the list of blocks that answer that call. A block is an object
with exactly one of these keys, and the options in brackets:

    think      text that the model thinks [pace: seconds between deltas]
    text       text that the model writes [pace]
    tool       name of a tool to call [input: object]
    stop       the stop reason instead of "end_turn" or "tool_use"
    delay      seconds to wait
    error      HTTP status instead of an answer [type, message, retry_after: seconds, times]
    drop       true: the connection breaks here [times]
    sse_error  type of an error event that ends the stream [message, times]

`times` says how often a failure happens before it is skipped; without it, always.
"""

import json
from typing import Any

MAX_CALLS = 1000
MAX_BLOCKS = 1000
MAX_SECONDS = 600

_START = "SCRIPT:["
_END = "END"
_Types = tuple[type, ...]
_PACED: dict[str, _Types] = {"pace": (int, float)}
_FAILING: dict[str, _Types] = {"times": (int,), "message": (str,)}
_KINDS: dict[str, tuple[_Types, dict[str, _Types]]] = {
    "think": ((str,), _PACED),
    "text": ((str,), _PACED),
    "tool": ((str,), {"input": (dict,)}),
    "stop": ((str,), {}),
    "delay": ((int, float), {}),
    "error": ((int,), {"type": (str,), "retry_after": (int, float), **_FAILING}),
    "drop": ((bool,), {"times": (int,)}),
    "sse_error": ((str,), _FAILING),
}


def find_script(text: str) -> list[list[dict[str, Any]]] | None:
    """Return the last script in the text, or None when there is none.

    Raises ValueError that says what is wrong with a malformed one.
    """
    script = None
    start = text.find(_START)
    while start >= 0:
        script, end = _read(text, start + len(_START) - 1)
        start = text.find(_START, end)
    if script is None:
        return None
    _check(script)
    return script


def block_kind(block: dict[str, Any]) -> str:
    """Return which of the kinds a block is; raises ValueError when it is not exactly one."""
    kinds = [key for key in block if key in _KINDS]
    if len(kinds) != 1:
        raise ValueError(f"a block of a script has exactly one of {', '.join(_KINDS)}; this has {list(block)}")
    return kinds[0]


def _read(text: str, start: int) -> tuple[list[list[dict[str, Any]]], int]:
    # The JSON decides where the script ends: its strings may hold "END", or a script for a subagent.
    try:
        script, end = json.JSONDecoder().raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the script is not valid JSON: {error}") from error
    if not text.startswith(_END, end):
        raise ValueError(f"the script's list ends at character {end} and is not followed by {_END}")
    return script, end + len(_END)


def _check(script: Any) -> None:
    if not isinstance(script, list) or len(script) > MAX_CALLS:
        raise ValueError(f"a script is a list of at most {MAX_CALLS} lists of blocks")
    for number, blocks in enumerate(script):
        if not isinstance(blocks, list) or len(blocks) > MAX_BLOCKS:
            raise ValueError(f"element {number} of the script is not a list of at most {MAX_BLOCKS} blocks")
        for block in blocks:
            _check_block(number, block)


def _check_block(number: int, block: Any) -> None:
    if not isinstance(block, dict):
        raise ValueError(f"element {number} of the script holds {block!r}, which is not an object")
    kind = block_kind(block)
    types, options = _KINDS[kind]
    for key, value in block.items():
        allowed = types if key == kind else options.get(key)
        if allowed is None:
            raise ValueError(f"element {number} of the script: {kind!r} has no option {key!r}")
        # bool is an int in Python; a script that says `"times": true` is a mistake.
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise ValueError(f"element {number} of the script: {key!r} of {kind!r} cannot be {value!r}")
        low, high = (400, 599) if key == "error" else (0, MAX_SECONDS)
        if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
            raise ValueError(f"element {number} of the script: {key!r} must be {low} to {high}, not {value}")
