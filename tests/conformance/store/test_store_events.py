"""Store contract: the log."""

import random
from itertools import pairwise

import pytest
from store_case import Clock, create, events, key, listen, session, texts

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import Fence, SessionKey, Store, Tx

ALL = 1 << 30


async def log(store: Store, name: SessionKey, after: int = 0, max_bytes: int = ALL) -> list[v1.Event]:
    """Read it all, a piece at a time, checking that the pieces fit together."""
    found: list[v1.Event] = []
    while frames := await store.events.read(name, after, max_bytes):
        piece = events(frames.data)
        assert [event.sequence for event in piece] == list(range(after + 1, frames.last + 1))
        assert frames.first == after + 1
        assert len(frames.data) <= max_bytes or len(piece) == 1
        found += piece
        after = frames.last
    return found


async def test_append_numbers_stamps_and_stores(store: Store, clock: Clock):
    name = await create(store)
    first = texts("a", "b")
    assert await store.append(name, first, None) == 2
    clock.advance(1.5)
    assert await store.append(name, texts("c"), None) == 3
    for event in first:
        assert event.session_id == name.session_id
        assert event.create_time.ToNanoseconds() == clock.now - 1_500_000_000
    found = await log(store, name)
    assert found[:2] == first
    assert [event.sequence for event in found] == [1, 2, 3]
    assert [event.text.text for event in found] == ["a", "b", "c"]
    assert found[2].create_time.ToNanoseconds() == clock.now


async def test_append_replaces_what_the_caller_set(store: Store):
    name = await create(store)
    event = v1.Event(sequence=99, session_id="another", turn_id="t")
    await store.append(name, [event], None)
    (found,) = await log(store, name)
    assert (found.sequence, found.session_id, found.turn_id) == (1, name.session_id, "t")


async def test_append_of_nothing(store: Store):
    name = await create(store)
    heard = listen(store)
    assert await store.append(name, [], None) == 0
    assert await store.append(name, texts("a"), None) == 1
    assert await store.append(name, [], None) == 1
    assert len(heard) == 1


async def test_append_takes_any_iterable_in_a_unit(store: Store):
    name = await create(store)
    assert await store.write(lambda tx: tx.append(name, (event for event in texts("a", "b")), None), name) == 2


async def test_units_and_appends_share_one_numbering(store: Store):
    name = key()

    def begin(tx: Tx) -> tuple[int, int]:
        tx.sessions.put(session(name))
        return tx.append(name, texts("1", "2"), None), tx.append(name, texts("3"), None)

    assert await store.write(begin, name) == (2, 3)
    assert await store.append(name, texts("4"), None) == 4
    assert await store.write(lambda tx: tx.append(name, texts("5"), None), name) == 5
    assert [event.text.text for event in await log(store, name)] == ["1", "2", "3", "4", "5"]


async def test_append_to_a_session_that_is_not_there(store: Store):
    name = key()
    with pytest.raises(KartaError) as caught:
        await store.append(name, texts("a"), None)
    assert caught.value.reason == v1.ERROR_REASON_SESSION_NOT_FOUND
    assert await store.events.read(name, 0, ALL) is None


async def claim(store: Store, name: SessionKey, turn_id: str) -> Fence:
    def unit(tx: Tx) -> Fence:
        tx.sessions.put(session(name, active_turn_id=turn_id))
        return Fence(turn_id, tx.sessions.advance_fence(name))

    return await store.write(unit, name)


async def test_a_fence_holds_while_its_turn_is_active_and_its_number_the_newest(store: Store):
    name = await create(store)
    old = await claim(store, name, "one")
    assert await store.append(name, texts("a"), old) == 1
    new = await claim(store, name, "one")
    assert await store.append(name, texts("b"), new) == 2
    for fence in (old, Fence("two", new.number), Fence("one", new.number + 1)):
        with pytest.raises(KartaError) as caught:
            await store.append(name, texts("x"), fence)
        assert caught.value.reason == v1.ERROR_REASON_FENCED
        with pytest.raises(KartaError) as caught:
            await store.write(lambda tx, fence=fence: tx.append(name, texts("x"), fence), name)
        assert caught.value.reason == v1.ERROR_REASON_FENCED
    await create(store, name, active_turn_id="")
    with pytest.raises(KartaError):
        await store.append(name, texts("x"), new)
    assert [event.text.text for event in await log(store, name)] == ["a", "b"]


async def test_a_unit_sees_its_own_fence(store: Store):
    name = key()

    def unit(tx: Tx) -> int:
        tx.sessions.put(session(name, active_turn_id="t"))
        fence = Fence("t", tx.sessions.advance_fence(name))
        last = tx.append(name, texts("a"), fence)
        tx.sessions.advance_fence(name)
        with pytest.raises(KartaError):
            tx.append(name, texts("x"), fence)
        return last

    assert await store.write(unit, name) == 1
    assert len(await log(store, name)) == 1


async def test_a_fenced_append_is_silent(store: Store):
    name = await create(store)
    heard = listen(store)
    with pytest.raises(KartaError):
        await store.append(name, texts("x"), Fence("t", 1))
    assert heard == []


async def test_read_behind_any_event_with_any_bound(store: Store):
    name = await create(store)
    dice = random.Random(7)
    expected: list[str] = []
    while len(expected) < 60:
        # Lengths on both sides of where the varint of the length grows.
        batch = [
            "x" * dice.choice([0, 1, 20, 50, 60, 70, 200, 16_250, 16_300, 16_400]) for _ in range(dice.randint(1, 9))
        ]
        await store.append(name, texts(*batch), None)
        expected += batch
    for after in range(len(expected) + 1):
        found = await log(store, name, after)
        assert [event.text.text for event in found] == expected[after:]
    for max_bytes in (1, 100, 1_000, 20_000, 100_000):
        assert [event.text.text for event in await log(store, name, 0, max_bytes)] == expected


async def test_read_has_about_as_much_as_it_may(store: Store):
    name = await create(store)
    for _ in range(20):
        await store.append(name, texts(*["x" * 1_000] * 10), None)
    frames = await store.events.read(name, 3, 50_000)
    assert frames is not None
    assert 48_000 < len(frames.data) <= 50_000


async def test_read_beyond_the_end_and_of_nothing(store: Store):
    name = await create(store)
    assert await store.events.read(name, 0, ALL) is None
    await store.append(name, texts("a"), None)
    assert await store.events.read(name, 1, ALL) is None
    assert await store.events.read(name, 100, ALL) is None
    assert await store.events.read(key(), 0, ALL) is None
    assert await store.events.read(SessionKey("other", name.session_id), 0, ALL) is None


async def test_large_appends_are_read_in_pieces(store: Store):
    name = await create(store)
    values = [str(number) * 1_000 for number in range(1_200)] + ["z" * 2_000_000, "end"]
    await store.append(name, texts(*values), None)
    pieces = []
    after = 0
    while frames := await store.events.read(name, after, 300_000):
        pieces.append(frames)
        after = frames.last
    assert [event.text.text for piece in pieces for event in events(piece.data)] == values
    assert all(second.first == first.last + 1 for first, second in pairwise(pieces))
    assert len(pieces) > 3
    assert max(len(piece.data) for piece in pieces[:-2]) <= 300_000


async def test_stored_bytes_are_streamed_bytes(store: Store):
    name = await create(store)
    heard = listen(store)
    await store.append(name, texts("a", "b", "c" * 200), None)
    (commit,) = heard
    assert commit.frames is not None
    assert await store.events.read(name, 0, ALL) == commit.frames
    frame = v1.EventFrame(events=await log(store, name))
    assert commit.frames.data == frame.SerializeToString()
