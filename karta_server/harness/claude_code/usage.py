"""What model calls used and cost, from the numbers of Claude Code."""

from typing import Any

from karta import v1


def to_usage(counts: dict[str, Any] | None) -> v1.Usage:
    """Return the usage of a model call or a turn."""
    counts = counts or {}
    written = _count(counts, "cache_creation_input_tokens")
    return v1.Usage(
        # Anthropic counts what goes into the cache apart from the input; Karta as a part of it.
        input_tokens=_count(counts, "input_tokens") + written,
        output_tokens=_count(counts, "output_tokens"),
        cache_read_tokens=_count(counts, "cache_read_input_tokens"),
        cache_write_tokens=written,
    )


class CostMeter:
    """Turns Claude Code's cumulative cost of a conversation into the cost of each turn.

    One for each process: a process that resumes a conversation goes on from
    its total where it finds it, and begins at 0 where it does not.
    """

    def __init__(self, last_micros: int) -> None:
        self.last_micros = last_micros

    def charge(self, total_usd: float | None) -> int | None:
        """Return what was added since the last call, in millionths of a US dollar; None when unknown."""
        if total_usd is None:
            return None
        total = round(total_usd * 1_000_000)
        # A smaller total than before means that it began anew.
        added = total - self.last_micros if total >= self.last_micros else total
        self.last_micros = total
        return added


def _count(counts: dict[str, Any], key: str) -> int:
    value = counts.get(key)
    return value if isinstance(value, int) and value >= 0 else 0
