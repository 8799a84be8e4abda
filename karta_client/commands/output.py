"""How kartactl prints what the contract has: JSON in one way everywhere, tables and fields for people."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from karta import v1
from karta_client.cleaning import clean

# Legal in JSON as they are, but a terminal may act on them; inside a string their escapes mean the same.
_UNSAFE = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def to_json(message: Message, *, indent: int | None = None) -> str:
    """Return proto3 JSON with the field names of the .proto; 64-bit numbers are strings, defaults are left out."""
    return _dump(MessageToDict(message, preserving_proto_field_name=True), indent)


def _dump(document: Any, indent: int | None) -> str:
    text = json.dumps(document, ensure_ascii=False, indent=indent, separators=None if indent else (",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def line(text: str) -> None:
    """Write a line to stdout and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def one(output: str, message: Message, text: Callable[[], str]) -> None:
    """Print one message: as JSON, or as `text` says it for people."""
    if output == "text":
        line(text())
    else:
        line(to_json(message, indent=2 if output == "json" else None))


def many(
    output: str, name: str, messages: Iterable[Message], header: Sequence[str], row: Callable[[Any], Sequence[str]]
) -> None:
    """Print messages: {name: [...]} as json, one a line as jsonl, or a table for people."""
    if output == "text":
        line(table(header, [row(message) for message in messages]))
    elif output == "json":
        found = [MessageToDict(message, preserving_proto_field_name=True) for message in messages]
        line(_dump({name: found}, 2))
    else:
        for message in messages:
            line(to_json(message))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under a header; the header stays when there are no rows, so that nobody takes it for a failure."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def fields(values: Iterable[tuple[str, object]]) -> str:
    """Lay out named values, one a line, without the empty ones."""
    shown = [(name, _cell(str(value))) for name, value in values if value not in ("", None, 0)]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown)


def _cell(value: str) -> str:
    return clean(value).replace("\n", " ").replace("\t", " ")


def name_of(enum: Any, value: int, prefix: str) -> str:
    """Return an enum value's name for people: TURN_STATE_RUNNING is "running"."""
    name: str = enum.Name(value) if value in enum.values() else str(value)
    return name.removeprefix(prefix).lower()


def state_of(turn: v1.Turn) -> str:
    """Return a turn's state for people."""
    return name_of(v1.TurnState, turn.state, "TURN_STATE_")


def time_of(stamp: Timestamp) -> str:
    """Return local time to the second; empty when it is not set."""
    if not stamp.seconds:
        return ""
    return stamp.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds(value: float) -> Duration:
    """Return a duration."""
    duration = Duration()
    duration.FromMilliseconds(round(value * 1000))
    return duration
