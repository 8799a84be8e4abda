"""Store contract: sessions."""

import pytest
from store_case import TENANT, Clock, create, input_request, key, listen, put_inputs, put_turns, session, texts, turn

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import Page, SessionFilter, SessionKey, Store, Tx

ANY = SessionFilter({})


async def ids(store: Store, where: SessionFilter = ANY, tenant_id: str = TENANT) -> list[str]:
    found, cursor = await store.sessions.page(tenant_id, where, Page(100))
    assert cursor == ""
    return [each.session_id for each in found]


async def test_put_and_get_give_back_every_field(store: Store, clock: Clock):
    name = key()
    put = session(
        name,
        user_id="ada",
        title="Überblick",
        metadata={"channel": "c1"},
        agent="reviewer",
        harness="scripted",
        participants=[v1.Participant(participant_id="p1", display_name="Ada")],
        etag="e1",
        usage=v1.Usage(input_tokens=3),
    )
    put.create_time.FromNanoseconds(clock.now)
    seen = await store.write(lambda tx: (tx.sessions.put(put), tx.sessions.get(name))[1], name)
    found = await store.sessions.get(name)
    assert found is not None
    assert found == seen
    put.update_time.CopyFrom(found.update_time)
    put.oldest_sequence = 1
    assert found == put


async def test_a_session_that_is_not_there(store: Store):
    assert await store.sessions.get(key()) is None
    assert await store.write(lambda tx: tx.sessions.get(key())) is None
    assert await store.sessions.memory(key()) == b""


async def test_get_returns_a_copy(store: Store):
    name = await create(store, title="one")

    def unit(tx: Tx) -> str:
        first = tx.sessions.get(name)
        assert first is not None
        first.title = "two"
        second = tx.sessions.get(name)
        assert second is not None
        return second.title

    assert await store.write(unit, name) == "one"


async def test_put_leaves_what_follows_the_log_alone(store: Store, clock: Clock):
    name = await create(store)
    await store.append(name, texts("a", "b"), None)
    before = await store.sessions.get(name)
    clock.advance(10)
    await create(store, name, title="new", latest_sequence=99)
    after = await store.sessions.get(name)
    assert before is not None
    assert after is not None
    assert after.title == "new"
    assert after.latest_sequence == 2
    assert after.update_time == before.update_time


async def test_update_time_and_latest_sequence_follow_the_newest_event(store: Store, clock: Clock):
    name = await create(store)
    clock.advance(5)

    def unit(tx: Tx) -> v1.Session | None:
        tx.append(name, texts("a"), None)
        return tx.sessions.get(name)

    inside = await store.write(unit, name)
    outside = await store.sessions.get(name)
    assert inside is not None
    assert inside == outside
    assert inside.latest_sequence == 1
    assert inside.update_time.ToMicroseconds() == clock.now // 1_000


async def test_find_latest_needs_equal_metadata_user_and_state(store: Store):
    wanted = await create(store, user_id="ada", metadata={"a": "1", "b": "2"})
    await create(store, user_id="ada", metadata={"a": "1"})
    await create(store, user_id="ada", metadata={"a": "1", "b": "2", "c": "3"})
    await create(store, user_id="eve", metadata={"a": "1", "b": "2"})
    await create(store, user_id="ada", metadata={"a": "1", "b": "2"}, state=v1.SESSION_STATE_ARCHIVED)
    await create(store, key("other"), user_id="ada", metadata={"a": "1", "b": "2"})
    found = await store.write(lambda tx: tx.sessions.find_latest(TENANT, "ada", {"b": "2", "a": "1"}))
    assert found is not None
    assert found.session_id == wanted.session_id
    assert await store.write(lambda tx: tx.sessions.find_latest(TENANT, "ada", {"b": "2"})) is None


@pytest.mark.parametrize(("left", "right"), [({"ab": "c"}, {"a": "bc"}), ({"a": ""}, {"": "a"}), ({"a": "b"}, {})])
async def test_find_latest_takes_no_metadata_for_another(store: Store, left: dict[str, str], right: dict[str, str]):
    await create(store, metadata=left)
    assert await store.write(lambda tx: tx.sessions.find_latest(TENANT, "", right)) is None
    assert await store.write(lambda tx: tx.sessions.find_latest(TENANT, "", left)) is not None


async def test_find_latest_follows_changed_metadata(store: Store):
    name = await create(store, metadata={"a": "1"})
    await create(store, name, metadata={"a": "2"})
    assert await store.write(lambda tx: tx.sessions.find_latest(TENANT, "", {"a": "1"})) is None
    assert await store.write(lambda tx: tx.sessions.find_latest(TENANT, "", {"a": "2"})) is not None


async def test_find_latest_is_the_newest_by_activity_as_the_unit_sees_it(store: Store, clock: Clock):
    old = await create(store)
    clock.advance(1)
    new = await create(store)
    clock.advance(1)

    def latest(tx: Tx) -> str:
        found = tx.sessions.find_latest(TENANT, "", {})
        assert found is not None
        return found.session_id

    def unit(tx: Tx) -> tuple[str, str]:
        before = latest(tx)
        tx.append(old, texts("a"), None)
        return before, latest(tx)

    assert await store.write(unit, old) == (new.session_id, old.session_id)
    assert await store.write(latest) == old.session_id


async def test_memory_is_kept_and_replaced(store: Store):
    name = await create(store)
    await store.write(lambda tx: tx.sessions.set_memory(name, b"\x00one"), name)
    assert await store.sessions.memory(name) == b"\x00one"
    await create(store, name, title="new")
    assert await store.sessions.memory(name) == b"\x00one"
    await store.write(lambda tx: tx.sessions.set_memory(name, b"two" * 100_000), name)
    assert await store.sessions.memory(name) == b"two" * 100_000


async def test_fence_counts_up_and_survives_put(store: Store):
    name = await create(store)
    assert await store.write(lambda tx: tx.sessions.advance_fence(name), name) == 1
    await create(store, name, title="new")
    assert await store.write(lambda tx: tx.sessions.advance_fence(name), name) == 2


async def test_a_session_that_does_not_exist_takes_nothing(store: Store):
    name = key()
    for unit in (
        lambda tx: tx.sessions.set_memory(name, b"x"),
        lambda tx: tx.sessions.advance_fence(name),
        lambda tx: tx.sessions.delete(name),
        lambda tx: tx.append(name, texts("a"), None),
        lambda tx: tx.turns.put(turn(name)),
        lambda tx: tx.inputs.put(input_request(name)),
    ):
        with pytest.raises(KartaError) as caught:
            await store.write(unit, name)
        assert caught.value.reason == v1.ERROR_REASON_SESSION_NOT_FOUND
        assert caught.value.metadata["session_id"] == name.session_id


async def test_delete_leaves_nothing(store: Store):
    name = await create(store, metadata={"a": "1"})
    other = await create(store, metadata={"a": "1"})
    asked = input_request(name)
    queued = turn(name)
    await store.append(name, texts("a"), None)
    await store.append(other, texts("a"), None)
    await store.write(lambda tx: tx.sessions.set_memory(name, b"m"), name)
    await put_turns(store, queued, turn(other))
    await put_inputs(store, asked, input_request(other))
    heard = listen(store)

    await store.write(lambda tx: tx.sessions.delete(name), name)

    assert [(commit.session, commit.deleted, commit.frames) for commit in heard] == [(name, True, None)]
    assert await store.sessions.get(name) is None
    assert await store.sessions.memory(name) == b""
    assert await store.turns.get(name, queued.turn_id) is None
    assert await store.inputs.get(TENANT, asked.input_request_id) is None
    assert await store.events.read(name, 0, 1000) is None
    assert await ids(store, SessionFilter({"a": "1"})) == [other.session_id]
    assert await store.events.read(other, 0, 1000) is not None
    assert len(await store.write(lambda tx: tx.turns.claimable(10))) == 1


async def test_delete_takes_what_the_same_unit_wrote(store: Store):
    name = key()

    def unit(tx: Tx) -> None:
        tx.sessions.put(session(name))
        tx.append(name, texts("a"), None)
        tx.inputs.put(input_request(name))
        tx.sessions.delete(name)
        assert tx.sessions.get(name) is None

    await store.write(unit, name)
    assert await store.sessions.get(name) is None
    assert await store.events.read(name, 0, 1000) is None
    await create(store, name)
    assert await store.append(name, texts("a"), None) == 1


async def test_page_filters(store: Store):
    both = await create(store, metadata={"a": "1", "b": "2"}, user_id="ada", agent="x", title="First")
    one = await create(store, metadata={"a": "1"}, state=v1.SESSION_STATE_ARCHIVED, title="Second")
    await create(store, key("other"), metadata={"a": "1"})
    assert set(await ids(store, SessionFilter({"a": "1"}))) == {both.session_id, one.session_id}
    assert await ids(store, SessionFilter({"a": "1", "b": "2"})) == [both.session_id]
    assert await ids(store, SessionFilter({"a": "2"})) == []
    assert await ids(store, SessionFilter({}, user_id="ada")) == [both.session_id]
    assert await ids(store, SessionFilter({}, states=(v1.SESSION_STATE_ARCHIVED,))) == [one.session_id]
    assert await ids(store, SessionFilter({}, agent="x")) == [both.session_id]
    assert await ids(store, SessionFilter({"a": "1"}, query="second")) == [one.session_id]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("100%", True),
        ("0% S", True),
        ("100_", False),
        ("%%", False),
        ("_", False),
        ("\\", True),
        ("/", False),
        ("ÄRGER", True),
        ("straße", True),
        ("STRASSE", True),
        ("VALUE-x", True),
        ("key-y", False),
    ],
)
async def test_query_is_a_substring_whatever_its_case(store: Store, query: str, found: bool):
    name = await create(store, title="100% sure, c:\\dir", metadata={"key-y": "VALUE-X", "k": "ärger auf der Straße"})
    assert await ids(store, SessionFilter({}, query=query)) == [name.session_id] * found


async def test_query_follows_changes(store: Store):
    name = await create(store, title="before", metadata={"k": "before"})
    await create(store, name, title="after")
    assert await ids(store, SessionFilter({}, query="before")) == []
    assert await ids(store, SessionFilter({}, query="after")) == [name.session_id]
    assert await ids(store, SessionFilter({"k": "before"})) == []


async def test_pages_are_newest_activity_first(store: Store, clock: Clock):
    names = []
    for _ in range(5):
        clock.advance(1)
        names.append(await create(store))
    clock.advance(1)
    await store.append(names[1], texts("a"), None)
    order = [names[1], names[4], names[3], names[2], names[0]]
    assert await ids(store) == [name.session_id for name in order]


async def test_paging_shows_every_session_once_while_others_change(store: Store, clock: Clock):
    names = [await create(store) for _ in range(3)]  # Of one and the same time.
    clock.advance(1)
    names += [await create(store) for _ in range(4)]
    seen: list[str] = []
    cursor = ""
    while True:
        page, cursor = await store.sessions.page(TENANT, ANY, Page(2, cursor))
        seen += [each.session_id for each in page]
        if not cursor:
            break
        assert len(page) == 2
        clock.advance(1)
        await create(store)  # Newer than what was seen: it does not push anything into the next page.
        await store.append(SessionKey(TENANT, seen[0]), texts("a"), None)
    assert sorted(seen) == sorted(name.session_id for name in names)


async def test_a_full_last_page_has_no_cursor(store: Store):
    for _ in range(4):
        await create(store)
    first, cursor = await store.sessions.page(TENANT, ANY, Page(2))
    second, end = await store.sessions.page(TENANT, ANY, Page(2, cursor))
    assert (len(first), len(second), end) == (2, 2, "")
