"""Deltas merged above a backlog say the same in fewer events."""

from hypothesis import given
from hypothesis import strategies as st

from karta import v1
from karta_server.core.merging import MAX_MERGED_BYTES, merged

PARTS = st.tuples(st.sampled_from(["text", "reasoning", "tool_use"]), st.sampled_from(["a", "b"]), st.text(max_size=9))


def event(kind: str, part_id: str, text: str) -> v1.Event:
    if kind == "tool_use":
        return v1.Event(tool_use=v1.ToolUse(tool_use_id=text))
    made = v1.Event(part_id=part_id)
    getattr(made, kind).text = text
    return made


def said(events: list[v1.Event]) -> list[tuple[str, str, str]]:
    """What a reader has in the end: runs of one part are one text."""
    runs: list[tuple[str, str, str]] = []
    for one in events:
        kind = one.WhichOneof("kind") or ""
        text = one.tool_use.tool_use_id if kind == "tool_use" else getattr(one, kind).text
        if runs and kind != "tool_use" and runs[-1][:2] == (kind, one.part_id):
            runs[-1] = (kind, one.part_id, runs[-1][2] + text)
        else:
            runs.append((kind, one.part_id, text))
    return runs


@given(st.lists(PARTS, max_size=40))
def test_the_same_is_said_in_fewer_events(parts: list[tuple[str, str, str]]) -> None:
    before = said([event(*part) for part in parts])
    after = merged([event(*part) for part in parts])
    assert said(after) == before
    assert len(after) == len(before)


def test_a_merged_delta_stays_small() -> None:
    after = merged([event("text", "a", "x" * 1000) for _ in range(100)])
    assert "".join(one.text.text for one in after) == "x" * 100_000
    assert max(len(one.text.text) for one in after) <= MAX_MERGED_BYTES
