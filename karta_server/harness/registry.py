"""The harnesses that Karta knows, and which one a project means."""

import importlib
from collections.abc import Mapping
from pathlib import Path

from karta_server.harness.contract import HarnessAdapter

ADAPTERS = {
    "claude_code": "karta_server.harness.claude_code.adapter:ClaudeCodeAdapter",
    "scripted": "karta_server.harness.scripted:ScriptedAdapter",
}
"""Name of each harness and where its adapter is, in the order in which detection prefers them."""

_NEVER_DETECTED = frozenset({"scripted"})


def load(name: str) -> type[HarnessAdapter]:
    """Return the adapter's class."""
    module, _, attribute = ADAPTERS[name].partition(":")
    adapter: type[HarnessAdapter] = getattr(importlib.import_module(module), attribute)
    return adapter


async def detect(project: Path, adapters: Mapping[str, HarnessAdapter]) -> str:
    """Return the harness that a project is made for.

    The first one, in the order of ADAPTERS, with a marker in the project; else
    the first that is installed; else the first, whose error then says how to
    install it.
    """
    candidates = [name for name in ADAPTERS if name not in _NEVER_DETECTED]
    for name in candidates:
        if any((project / marker).exists() for marker in adapters[name].markers):
            return name
    for name in candidates:
        if (await adapters[name].describe()).available:
            return name
    return candidates[0]
