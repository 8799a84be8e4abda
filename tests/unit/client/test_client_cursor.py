"""Going on where a stream broke, without I/O."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karta import v1
from karta_client.cursor import Backoff, SessionCursor, TurnCursor
from karta_client.errors import InternalError, NotFoundError, UnavailableError

AWAY = UnavailableError("away", code="UNAVAILABLE")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def backoff(limit: float = 60.0, clock: Clock | None = None) -> Backoff:
    return Backoff(lambda: limit, clock or Clock())


def frame(*events: v1.Event, latest: int = 0) -> v1.EventFrame:
    return v1.EventFrame(events=events, latest_sequence=latest)


def text(sequence: int, turn_id: str = "t") -> v1.Event:
    return v1.Event(sequence=sequence, turn_id=turn_id, text=v1.TextDelta(text=str(sequence)))


def finished(sequence: int) -> v1.Event:
    return v1.Event(sequence=sequence, turn_id="t", turn_finished=v1.TurnFinished())


def test_pauses_double_up_to_a_bound_and_are_spread() -> None:
    pauses = backoff()
    got = [pauses.next(AWAY) for _ in range(12)]
    for index, pause in enumerate(got):
        longest = min(0.05 * 2**index, 2.0)
        assert longest / 2 <= pause <= longest
    assert len(set(got)) == 12


def test_it_gives_up_with_the_last_failure() -> None:
    clock = Clock()
    pauses = backoff(limit=10.0, clock=clock)
    pauses.next(AWAY)
    clock.now += 9.8
    pauses.next(AWAY)
    clock.now += 0.3
    last = UnavailableError("still away")
    with pytest.raises(UnavailableError) as caught:
        pauses.next(last)
    assert caught.value is last


def test_progress_begins_the_time_anew() -> None:
    clock = Clock()
    pauses = backoff(limit=10.0, clock=clock)
    for _ in range(5):
        pauses.next(AWAY)
        clock.now += 9
        pauses.reset()
    assert pauses.next(AWAY) <= 0.05


def test_the_limit_may_change_meanwhile() -> None:
    clock, limit = Clock(), 1.0
    pauses = Backoff(lambda: limit, clock)
    pauses.next(AWAY)
    clock.now += 5
    limit = 60.0
    pauses.next(AWAY)


def test_a_turn_is_started_until_its_id_is_known_and_then_watched() -> None:
    start = v1.StartTurnRequest(request_id="r", session_id="s")
    cursor = TurnCursor(backoff(), start=start)
    assert cursor.call().method == "RunTurn"
    assert cursor.accept(frame()) == []
    assert cursor.lost(AWAY) > 0
    again = cursor.call()
    assert again.method == "RunTurn"
    assert again.request.start.request_id == "r"  # type: ignore[attr-defined]
    assert cursor.accept(frame(text(5), latest=5)) == [text(5)]
    cursor.lost(AWAY)
    watch = cursor.call()
    assert watch.method == "WatchTurn"
    assert watch.request == v1.WatchTurnRequest(session_id="s", turn_id="t", after_sequence=5)


def test_a_turn_is_done_with_its_terminal_event() -> None:
    cursor = TurnCursor(backoff(), session_id="s", turn_id="t")
    cursor.accept(frame(text(1)))
    assert not cursor.done
    cursor.accept(frame(text(2), finished(9)))
    assert cursor.done


def test_a_turn_that_ends_early_is_lost() -> None:
    cursor = TurnCursor(backoff(), session_id="s", turn_id="t")
    assert 0 < cursor.lost(None) <= 0.05


def test_what_was_seen_does_not_come_twice() -> None:
    cursor = TurnCursor(backoff(), session_id="s", turn_id="t")
    cursor.accept(frame(text(1), text(2)))
    assert cursor.accept(frame(text(1), text(2), text(4))) == [text(4)]


def test_heartbeats_move_the_cursor() -> None:
    cursor = SessionCursor(backoff(), session_id="s", kinds=["text"])
    cursor.accept(frame(text(3), latest=3))
    cursor.accept(frame(latest=40))
    assert cursor.call().request.after_sequence == 40  # type: ignore[attr-defined]


def test_only_a_lost_connection_is_tried_again() -> None:
    cursor = SessionCursor(backoff(), session_id="s")
    with pytest.raises(NotFoundError):
        cursor.lost(NotFoundError("gone"))


def test_a_watch_that_does_not_follow_is_done_at_the_end() -> None:
    cursor = SessionCursor(backoff(), session_id="s", follow=False)
    assert cursor.lost(None) == 0
    assert cursor.done
    following = SessionCursor(backoff(), session_id="s")
    assert following.lost(None) > 0
    assert not following.done


def test_a_gap_is_never_silent() -> None:
    cursor = SessionCursor(backoff(), session_id="s")
    cursor.accept(frame(text(1)))
    with pytest.raises(InternalError, match="Event 2"):
        cursor.accept(frame(text(3)))


@given(st.integers(1, 60), st.integers(), st.booleans())
def test_whatever_is_cut_and_repeated_the_log_comes_once(length: int, seed: int, follow: bool) -> None:
    """A server that cuts at random places, and repeats some events after each."""
    dice = random.Random(seed)
    cursor = SessionCursor(backoff(), session_id="s", follow=follow)
    seen: list[int] = []
    while len(seen) < length:
        after: int = cursor.call().request.after_sequence  # type: ignore[attr-defined]
        begin = max(0, after - dice.randint(0, 3))
        end = min(length, after + dice.randint(0, 7))
        seen += [event.sequence for event in cursor.accept(frame(*(text(n) for n in range(begin + 1, end + 1))))]
        cursor.lost(AWAY)
    assert seen == list(range(1, length + 1))
