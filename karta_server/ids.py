"""Ids: UUIDv7, sortable by the time of their making."""

import random
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """Return a UUIDv7 as text; each is greater than the one this process made before."""
    global _last
    with _lock:
        # 48 bits of milliseconds and 12 bits that count within one of them.
        stamp = max(time.time_ns() // 1_000_000 << 12, _last + 1)
        _last = stamp
    value = (stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | random.getrandbits(62)
    return str(uuid.UUID(int=value))
