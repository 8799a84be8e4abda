"""The events of a frame as the bytes that came, decoded without the server's own code."""

from karta import v1


def split(frame: bytes) -> list[bytes]:
    """Return the bytes of each event of an EventFrame or of a stored chunk."""
    events: list[bytes] = []
    offset = 0
    while offset < len(frame):
        tag, offset = _varint(frame, offset)
        if tag == 0x0A:  # events = 1
            size, offset = _varint(frame, offset)
            assert offset + size <= len(frame), "an event is cut off"
            events.append(frame[offset : offset + size])
            offset += size
        else:
            assert tag == 0x10, f"unknown field {tag >> 3}"  # latest_sequence = 2
            _, offset = _varint(frame, offset)
    return events


def event(data: bytes) -> v1.Event:
    return v1.Event.FromString(data)


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
        value |= (byte & 0x7F) << shift
        shift += 7
        offset += 1
        if byte < 0x80:
            return value, offset
