"""Making events: who says what, in which turn."""

import time

from google.protobuf import timestamp_pb2

from karta import v1


def now() -> timestamp_pb2.Timestamp:
    """Return the present as protobuf writes it."""
    nanos = time.time_ns()
    return timestamp_pb2.Timestamp(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def system(turn_id: str, **kind: object) -> v1.Event:
    """Return an event that Karta itself brings about."""
    return v1.Event(source=v1.EVENT_SOURCE_SYSTEM, turn_id=turn_id, **kind)  # type: ignore[arg-type]


def said(turn_id: str, participant_id: str, **kind: object) -> v1.Event:
    """Return an event that a participant, or the session's user, brings about."""
    return v1.Event(
        source=v1.EVENT_SOURCE_PARTICIPANT,
        actor=participant_id,
        turn_id=turn_id,
        **kind,  # type: ignore[arg-type]
    )


def add_usage(total: v1.Usage, part: v1.Usage) -> None:
    """Add one usage to another; a cost stays unknown only while no part had one."""
    total.input_tokens += part.input_tokens
    total.output_tokens += part.output_tokens
    total.cache_read_tokens += part.cache_read_tokens
    total.cache_write_tokens += part.cache_write_tokens
    if part.HasField("cost_usd_micros"):
        total.cost_usd_micros += part.cost_usd_micros
