"""Frames of events are what protobuf makes of EventFrame."""

from hypothesis import given
from hypothesis import strategies as st

from karta import v1
from karta_server.framing import fit, frame, skip

sizes = st.lists(
    st.sampled_from([0, 1, 124, 125, 126, 127, 128, 16_378, 16_379, 16_380, 16_384, 2_100_000]), max_size=5
)


def made(lengths: list[int]) -> list[v1.Event]:
    return [v1.Event(session_id="x" * length) for length in lengths]


@given(sizes)
def test_frames_are_an_event_frame(lengths: list[int]):
    events = made(lengths)
    frames = b"".join(frame(event.SerializeToString()) for event in events)
    assert frames == v1.EventFrame(events=events).SerializeToString()


@given(sizes, st.data())
def test_skip_and_fit_cut_between_events(lengths: list[int], data: st.DataObject):
    frames = [frame(event.SerializeToString()) for event in made(lengths)]
    whole = b"".join(frames)
    count = data.draw(st.integers(0, len(frames)))
    start = skip(whole, count)
    assert start == sum(map(len, frames[:count]))
    room = data.draw(st.integers(0, len(whole) + 1))
    taken, end = fit(whole, start, room, at_least=0)
    assert end - start == sum(map(len, frames[count : count + taken])) <= room
    assert count + taken == len(frames) or end - start + len(frames[count + taken]) > room
    assert fit(whole, start, 0, at_least=1)[0] == (1 if count < len(frames) else 0)
