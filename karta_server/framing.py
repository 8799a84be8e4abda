"""Events as they are stored and streamed: field 1 of EventFrame, repeated.

A frame is the tag 0x0a, the length as a varint, and the serialized event.
"""

from collections.abc import Iterator
from itertools import islice

_TAG = b"\x0a"


def frame(event: bytes) -> bytes:
    """Return the event's bytes with tag and length in front."""
    size = len(event)
    if size < 0x80:
        return bytes((0x0A, size)) + event
    if size < 0x4000:
        return bytes((0x0A, size & 0x7F | 0x80, size >> 7)) + event
    return _TAG + varint(size) + event


def skip(frames: bytes, count: int) -> int:
    """Return where the frame behind the first `count` begins."""
    return next(islice(_ends(frames, 0), count - 1, None)) if count else 0


def fit(frames: bytes, start: int, max_bytes: int, *, at_least: int) -> tuple[int, int]:
    """Return how many frames from `start` on fit into `max_bytes`, and where the last of them ends."""
    count, end = 0, start
    for behind in _ends(frames, start):
        if count >= at_least and behind - start > max_bytes:
            break
        count, end = count + 1, behind
    return count, end


def _ends(frames: bytes, offset: int) -> Iterator[int]:
    total = len(frames)
    while offset < total:
        offset += 1
        size = shift = 0
        while (byte := frames[offset]) & 0x80:
            size |= (byte & 0x7F) << shift
            shift += 7
            offset += 1
        offset += 1 + (size | byte << shift)
        yield offset


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
