"""W3C trace context: https://www.w3.org/TR/trace-context/."""

import random
import re

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def traceparent(received: str | None) -> str:
    """Return the received context as version 00, or a new one, not sampled, when it is absent or invalid."""
    match = _TRACEPARENT.fullmatch(received or "")
    if match:
        version, trace_id, parent_id, flags, rest = match.groups()
        # A newer version may have more fields behind; of version 00 that is an error.
        known = version != "ff" and not (version == "00" and rest)
        if known and int(trace_id, 16) and int(parent_id, 16):
            return f"00-{trace_id}-{parent_id}-{flags}"
    return f"00-{_random(16)}-{_random(8)}-00"


def trace_id(context: str) -> str:
    """Return the trace id of a valid context."""
    return context[3:35]


def _random(size_bytes: int) -> str:
    # All zeros is not an id. It is no secret either, so the fast generator will do.
    return f"{random.getrandbits(size_bytes * 8) or 1:0{size_bytes * 2}x}"
