"""Store contract: units, their order and failure, listeners, closing."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from store_case import TENANT, create, events, input_request, key, listen, session, texts, turn

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import Commit, Page, SessionFilter, Store, Tx

ALL = 1 << 30


class RefusedError(Exception):
    """What a unit of these tests raises."""


async def test_a_unit_returns_what_it_returns(store: Store):
    assert await store.write(lambda tx: ("anything", None)) == ("anything", None)


async def test_a_failed_unit_leaves_nothing(store: Store):
    name, other = await create(store, title="before", metadata={"k": "before"}), key()
    await store.append(name, texts("1"), None)
    before = await store.sessions.get(name)
    heard = listen(store)
    asked, queued = input_request(name), turn(name)

    def unit(tx: Tx) -> None:
        tx.sessions.put(session(other))
        tx.sessions.put(session(name, title="after", metadata={"k": "after"}, active_turn_id="t"))
        tx.sessions.set_memory(name, b"after")
        tx.sessions.advance_fence(name)
        tx.turns.put(queued)
        tx.inputs.put(asked)
        tx.append(name, texts("never"), None)
        raise RefusedError

    with pytest.raises(RefusedError):
        await store.write(unit, name, other)
    assert heard == []
    assert await store.sessions.get(name) == before
    assert await store.sessions.get(other) is None
    assert await store.sessions.memory(name) == b""
    assert await store.turns.get(name, queued.turn_id) is None
    assert await store.inputs.get(TENANT, asked.input_request_id) is None
    assert await store.write(lambda tx: tx.sessions.advance_fence(name), name) == 1
    assert await store.append(name, texts("2"), None) == 2
    found, _ = await store.sessions.page(TENANT, SessionFilter({"k": "before"}), Page(10))
    assert [each.session_id for each in found] == [name.session_id]


async def test_a_failed_delete_leaves_everything(store: Store):
    name = await create(store)
    await store.append(name, texts("1", "2"), None)

    def unit(tx: Tx) -> None:
        tx.sessions.delete(name)
        raise RefusedError

    with pytest.raises(RefusedError):
        await store.write(unit, name)
    assert await store.append(name, texts("3"), None) == 3


async def test_units_fail_alone_among_their_neighbours(store: Store):
    name = await create(store)

    def refused(tx: Tx) -> int:
        tx.append(name, texts("never", "never"), None)
        raise RefusedError

    results = await asyncio.gather(
        *(
            store.append(name, texts(str(number)), None)
            if number % 3 == 0
            else store.write(
                refused if number % 3 == 1 else lambda tx, number=number: tx.append(name, texts(str(number)), None),
                name,
            )
            for number in range(60)
        ),
        return_exceptions=True,
    )
    assert [isinstance(result, RefusedError) for result in results] == [number % 3 == 1 for number in range(60)]
    assert [result for result in results if isinstance(result, int)] == list(range(1, 41))
    frames = await store.events.read(name, 0, ALL)
    assert frames is not None
    assert [event.sequence for event in events(frames.data)] == list(range(1, 41))
    assert [event.text.text for event in events(frames.data)] == [str(n) for n in range(60) if n % 3 != 1]


@pytest.mark.parametrize("error", [StopIteration, asyncio.CancelledError, RefusedError])
async def test_whatever_a_unit_raises_the_store_goes_on(store: Store, error: type[BaseException]):
    name = await create(store)

    def unit(tx: Tx) -> None:
        tx.append(name, texts("never"), None)
        raise error

    with pytest.raises((RuntimeError, asyncio.CancelledError, RefusedError)):
        await store.write(unit, name)
    assert await store.append(name, texts("a"), None) == 1


async def test_sessions_have_sequences_without_gap_whoever_writes(store: Store):
    names = [await create(store) for _ in range(20)]

    def refused(tx: Tx) -> None:
        for name in names:
            tx.append(name, texts("never"), None)
        raise RefusedError

    async def write(index: int) -> None:
        name = names[index % len(names)]
        if index % 7 == 0:
            with pytest.raises(RefusedError):
                await store.write(refused, *names)
        elif index % 2:
            await store.append(name, texts("a", "b"), None)
        else:
            await store.write(lambda tx: tx.append(name, texts("c"), None), name)

    await asyncio.gather(*map(write, range(600)))
    for name in names:
        frames = await store.events.read(name, 0, ALL)
        found = await store.sessions.get(name)
        assert frames is not None
        assert found is not None
        assert [event.sequence for event in events(frames.data)] == list(range(1, found.latest_sequence + 1))
        assert frames.last == found.latest_sequence


async def test_writes_of_a_session_keep_the_order_of_their_calls(store: Store):
    name = await create(store)
    writes = [
        asyncio.ensure_future(
            store.append(name, texts(str(number)), None)
            if number % 2
            else store.write(lambda tx, number=number: tx.append(name, texts(str(number)), None), name)
        )
        for number in range(200)
    ]
    assert await asyncio.gather(*writes) == list(range(1, 201))
    frames = await store.events.read(name, 0, ALL)
    assert frames is not None
    assert [event.text.text for event in events(frames.data)] == [str(number) for number in range(200)]


async def test_a_unit_sees_what_was_written_before_it(store: Store):
    name = key()

    def create_it(tx: Tx) -> None:
        tx.sessions.put(session(name, title="one"))

    async def read_it() -> v1.Session | None:
        return await store.write(lambda tx: tx.sessions.get(name))

    _, _, found = await asyncio.gather(store.write(create_it, name), store.append(name, texts("a"), None), read_it())
    assert found is not None
    assert (found.title, found.latest_sequence) == ("one", 1)


async def test_cancelling_the_caller_does_not_stop_the_unit(store: Store):
    name = await create(store)
    write = asyncio.ensure_future(store.write(lambda tx: tx.append(name, texts("a"), None), name))
    append = asyncio.ensure_future(store.append(name, texts("b"), None))
    await asyncio.sleep(0)
    write.cancel()
    append.cancel()
    assert await asyncio.gather(write, append, return_exceptions=True) != [1, 2]
    assert await store.append(name, texts("c"), None) == 3


async def test_listeners_hear_what_is_durable_before_its_writer_goes_on(store: Store):
    name = await create(store)
    order: list[str] = []
    reads: list[asyncio.Task[object]] = []

    def listener(commits: Sequence[Commit]) -> None:
        order.append("heard")
        reads.append(asyncio.ensure_future(store.events.read(name, 0, ALL)))

    store.subscribe(listener)
    await store.append(name, texts("a"), None)
    order.append("returned")
    assert order == ["heard", "returned"]
    assert await reads[0] is not None


async def test_commits_hold_what_changed_by_session(store: Store):
    one, two = await create(store), await create(store)
    heard = listen(store)

    def unit(tx: Tx) -> None:
        tx.append(one, texts("a"), None)
        tx.inputs.put(input_request(one))
        tx.append(one, texts("b"), None)
        tx.append(two, texts("c"), None)

    await store.write(unit, one, two)
    by_session = {commit.session: commit for commit in heard}
    assert len(heard) == len(by_session) == 2
    frames = by_session[one].frames
    assert frames is not None
    assert (frames.first, frames.last) == (1, 2)
    assert [event.text.text for event in events(frames.data)] == ["a", "b"]
    assert len(by_session[one].inputs) == 1
    assert not by_session[one].deleted


async def test_commits_join_without_gap(store: Store):
    name = await create(store)
    heard = listen(store)
    await asyncio.gather(*(store.append(name, texts("x" * 3_000, "y"), None) for _ in range(300)))
    latest = 0
    for commit in heard:
        assert commit.frames is not None
        assert commit.frames.first == latest + 1
        latest = commit.frames.last
        assert [event.sequence for event in events(commit.frames.data)][-1] == latest
    assert latest == 600


async def test_a_listener_that_fails_or_ends_harms_nobody(store: Store, caplog: pytest.LogCaptureFixture):
    name = await create(store)
    heard: list[Commit] = []

    def failing(_commits: Sequence[Commit]) -> None:
        raise RefusedError

    store.subscribe(failing)
    end = store.subscribe(heard.extend)
    await store.append(name, texts("a"), None)
    assert len(heard) == 1
    assert "listener" in caplog.text
    end()
    end()
    assert await store.append(name, texts("b"), None) == 2
    assert len(heard) == 1


async def test_reading_alone_makes_no_commit(store: Store):
    name = await create(store)
    heard = listen(store)
    await store.write(lambda tx: (tx.sessions.get(name), tx.turns.claims()), name)
    assert heard == []


async def test_a_store_that_is_closed_or_not_open_is_unavailable(make_store: Callable[[], Store]):
    store = make_store()
    name = key()

    async def assert_unavailable() -> None:
        for call in (
            store.write(lambda tx: tx.sessions.put(session(name)), name),
            store.append(name, texts("a"), None),
            store.sessions.get(name),
            store.events.read(name, 0, ALL),
        ):
            with pytest.raises(KartaError) as caught:
                await call
            assert caught.value.reason == v1.ERROR_REASON_STORE_UNAVAILABLE

    await assert_unavailable()
    await store.close()
    store = make_store()
    await store.open()
    await store.close()
    await store.close()
    await assert_unavailable()


async def test_close_writes_what_is_pending(make_store: Callable[[], Store]):
    store = make_store()
    await store.open()
    name = await create(store)
    appends = [asyncio.ensure_future(store.append(name, texts("a"), None)) for _ in range(500)]
    await asyncio.sleep(0)
    await asyncio.gather(store.close(), store.close())
    assert [append.result() for append in appends] == list(range(1, 501))
    again = make_store()
    await again.open()
    found = await again.sessions.get(name)
    assert found is not None
    assert found.latest_sequence == 500
    assert await again.append(name, texts("b"), None) == 501
    await again.close()


async def test_everything_is_there_after_opening_again(make_store: Callable[[], Store]):
    store = make_store()
    await store.open()
    name = await create(store, metadata={"a": "1"}, active_turn_id="t")
    await store.write(lambda tx: (tx.sessions.set_memory(name, b"m"), tx.sessions.advance_fence(name)), name)
    await store.append(name, texts("a"), None)
    before, log = await store.sessions.get(name), await store.events.read(name, 0, ALL)
    await store.close()
    store = make_store()
    await store.open()
    assert await store.sessions.get(name) == before
    assert await store.events.read(name, 0, ALL) == log
    assert await store.sessions.memory(name) == b"m"
    assert await store.write(lambda tx: tx.sessions.advance_fence(name), name) == 2
    await store.close()
