"""Merging deltas above a backlog: what nobody could be shown in time is shown in fewer pieces."""

from collections.abc import Sequence

from karta import v1

_DELTAS = ("text", "reasoning")
# A merged delta stays well below what a client takes in one message.
MAX_MERGED_BYTES = 16 * 1024


def merged(events: Sequence[v1.Event]) -> list[v1.Event]:
    """Return the events with neighbouring deltas of one part made one. Changes the first of each such run."""
    result: list[v1.Event] = []
    open_kind = ""
    pieces: list[str] = []
    size = 0

    def close() -> None:
        if len(pieces) > 1:
            getattr(result[-1], open_kind).text = "".join(pieces)

    for event in events:
        kind = event.WhichOneof("kind") or ""
        if kind not in _DELTAS:
            close()
            open_kind, pieces = "", []
            result.append(event)
            continue
        text: str = getattr(event, kind).text
        if kind == open_kind and size + len(text) <= MAX_MERGED_BYTES and _same_part(result[-1], event):
            pieces.append(text)
            size += len(text)
        else:
            close()
            open_kind, pieces, size = kind, [text], len(text)
            result.append(event)
    close()
    return result


def _same_part(one: v1.Event, other: v1.Event) -> bool:
    return (
        one.part_id == other.part_id
        and one.step == other.step
        and one.parent_tool_use_id == other.parent_tool_use_id
        and one.actor == other.actor
        and one.source == other.source
    )
