"""Store contract: trimming logs."""

import pytest
from store_case import Clock, create, events, key, listen, session, texts

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import SessionKey, Store, Tx

ALL = 1 << 30


async def trim(store: Store, name: SessionKey, keep_events: int = 0, keep_since: int = 0) -> int:
    return await store.write(lambda tx: tx.trim(name, keep_events, keep_since), name)


async def oldest(store: Store, name: SessionKey) -> int:
    """What the session says, inside and outside of a unit."""
    found = await store.sessions.get(name)
    inside = await store.write(lambda tx: tx.sessions.get(name))
    assert found is not None
    assert found == inside
    return found.oldest_sequence


async def kept(store: Store, name: SessionKey, after: int = 0) -> list[int]:
    frames = await store.events.read(name, after, ALL)
    if frames is None:
        return []
    found = [event.sequence for event in events(frames.data)]
    assert (frames.first, frames.last) == (found[0], found[-1])
    return found


async def test_a_new_session_has_all(store: Store):
    name = await create(store)
    assert await oldest(store, name) == 1
    assert await trim(store, name, 1, ALL) == 1
    await store.append(name, texts("a"), None)
    assert await trim(store, name) == 1
    assert await kept(store, name) == [1]


async def test_by_count_in_whole_chunks(store: Store):
    name = await create(store)
    for _ in range(5):
        await store.append(name, texts("a", "b", "c"), None)
    assert await trim(store, name, 15) == 1
    assert await trim(store, name, 8) == 7
    assert await oldest(store, name) == 7
    assert await kept(store, name) == list(range(7, 16))
    assert await kept(store, name, 2) == list(range(7, 16))
    assert await kept(store, name, 8) == list(range(9, 16))
    assert await trim(store, name, 100) == 7
    assert await trim(store, name, 1) == 13
    assert await kept(store, name) == [13, 14, 15]


async def test_by_age(store: Store, clock: Clock):
    name = await create(store)
    times = []
    for _ in range(4):
        times.append(clock.now // 1_000)
        await store.append(name, texts("a", "b"), None)
        clock.advance(10)
    assert await trim(store, name, 0, times[0]) == 1
    assert await trim(store, name, 0, times[2]) == 5
    assert await trim(store, name, 7, times[1]) == 5
    assert await trim(store, name, 1, times[3]) == 7
    assert await trim(store, name, 0, clock.now // 1_000) == 7
    assert await kept(store, name) == [7, 8]


async def test_the_newest_event_stays(store: Store, clock: Clock):
    name = await create(store)
    await store.append(name, texts("a"), None)
    await store.append(name, texts("b"), None)
    clock.advance(100)
    assert await trim(store, name, 1, clock.now // 1_000) == 2
    assert await kept(store, name) == [2]
    assert await store.append(name, texts("c"), None) == 3


async def test_with_appends_in_the_same_unit(store: Store):
    name = await create(store)
    await store.append(name, texts("a"), None)
    await store.append(name, texts("b"), None)

    def unit(tx: Tx) -> int:
        tx.append(name, texts("c"), None)
        return tx.trim(name, 1, 0)

    assert await store.write(unit, name) <= 3
    found = await kept(store, name)
    assert found[-1] == 3
    assert found[0] == await oldest(store, name)


async def test_putting_a_session_leaves_it(store: Store):
    name = await create(store)
    for _ in range(3):
        await store.append(name, texts("a"), None)
    await trim(store, name, 1)
    await store.write(lambda tx: tx.sessions.put(session(name, title="new", oldest_sequence=99)), name)
    assert await oldest(store, name) == 3


async def test_a_unit_that_fails_trims_nothing(store: Store):
    name = await create(store)
    for _ in range(3):
        await store.append(name, texts("a"), None)

    def unit(tx: Tx) -> None:
        assert tx.trim(name, 1, 0) == 3
        assert tx.sessions.get(name).oldest_sequence == 3
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        await store.write(unit, name)
    assert await oldest(store, name) == 1
    assert await kept(store, name) == [1, 2, 3]


async def test_is_no_news_and_touches_no_other(store: Store):
    one, two = await create(store), await create(store)
    for name in (one, two):
        for _ in range(3):
            await store.append(name, texts("a"), None)
    before = await store.sessions.get(one)
    heard = listen(store)
    await trim(store, one, 1)
    after = await store.sessions.get(one)
    assert before is not None
    before.oldest_sequence = 3
    assert after == before
    assert [commit.frames for commit in heard] in ([], [None])
    assert await kept(store, two) == [1, 2, 3]


async def test_of_a_session_that_is_not_there_or_was_deleted(store: Store):
    with pytest.raises(KartaError) as caught:
        await trim(store, key(), 1)
    assert caught.value.reason == v1.ERROR_REASON_SESSION_NOT_FOUND
    name = await create(store)
    for _ in range(3):
        await store.append(name, texts("a"), None)
    await trim(store, name, 1)
    await store.write(lambda tx: tx.sessions.delete(name), name)
    await create(store, name)
    assert await oldest(store, name) == 1
    assert await store.append(name, texts("a"), None) == 1
    assert await kept(store, name) == [1]


async def test_a_long_log_in_bounded_parts(store: Store):
    name = await create(store)
    for _ in range(600):
        await store.append(name, texts("a"), None)
    steps = [await trim(store, name, 10) for _ in range(6)]
    assert steps == sorted(steps)
    assert 1 < steps[0] < 591
    assert steps[-1] == 591
    assert await kept(store, name) == list(range(591, 601))


async def test_outgrown_are_those_that_trim_would_trim(store: Store, clock: Clock):
    old, long, short = [await create(store, key(tenant)) for tenant in ("a", "b", "c")]
    await create(store)
    await store.append(old, texts("a"), None)
    clock.advance(10)
    since = clock.now // 1_000
    for name, count in ((old, 1), (long, 5), (short, 4)):
        for _ in range(count):
            await store.append(name, texts("a"), None)

    async def outgrown(keep_events: int, keep_since: int, limit: int = 10) -> list[SessionKey]:
        found, behind = await store.sessions.outgrown(None, keep_events, keep_since, limit)
        while behind is not None:
            more, behind = await store.sessions.outgrown(behind, keep_events, keep_since, limit)
            found += more
        return found

    for limit in (1, 2, 3, 4, 10):
        assert await outgrown(4, 0, limit) == [long]
        assert await outgrown(0, since, limit) == [old]
        assert await outgrown(4, since, limit) == [old, long]
    assert await outgrown(0, 0) == []
    await trim(store, old, 0, since)
    await trim(store, long, 4)
    assert await outgrown(4, since) == []
