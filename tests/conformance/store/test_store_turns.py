"""Store contract: turns and claims."""

import pytest
from store_case import TENANT, create, key, put_turns, turn

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import Claim, Page, Store

ACTIVE = (v1.TURN_STATE_RUNNING, v1.TURN_STATE_INPUT_REQUIRED)
TERMINAL = (
    v1.TURN_STATE_COMPLETED,
    v1.TURN_STATE_FAILED,
    v1.TURN_STATE_CANCELLED,
    v1.TURN_STATE_INTERRUPTED,
)


async def test_put_and_get_give_back_every_field(store: Store):
    name = await create(store)
    put = turn(
        name,
        message=v1.Message(parts=[v1.Part(text="hello")]),
        usage=v1.Usage(cost_usd_micros=0),
        first_sequence=7,
        busy_policy=v1.BUSY_POLICY_QUEUE,
    )
    put.create_time.GetCurrentTime()
    inside = await store.write(lambda tx: (tx.turns.put(put), tx.turns.get(name, put.turn_id))[1], name)
    assert inside == put
    assert await store.turns.get(name, put.turn_id) == put
    put.state = v1.TURN_STATE_FAILED
    await put_turns(store, put)
    assert await store.turns.get(name, put.turn_id) == put


async def test_a_turn_that_is_not_there(store: Store):
    name = await create(store)
    other = await create(store)
    put = turn(other)
    await put_turns(store, put)
    assert await store.turns.get(name, put.turn_id) is None
    assert await store.write(lambda tx: tx.turns.get(name, put.turn_id)) is None
    assert await store.write(lambda tx: tx.turns.next_queued(name)) is None


@pytest.mark.parametrize("first", ACTIVE)
@pytest.mark.parametrize("second", ACTIVE)
async def test_a_second_active_turn_fails_its_unit(store: Store, first: v1.TurnState, second: v1.TurnState):
    name = await create(store)
    active, another = turn(name, state=first), turn(name, state=second)
    await put_turns(store, active)
    with pytest.raises(KartaError):
        await put_turns(store, another)
    assert await store.turns.get(name, another.turn_id) is None
    await put_turns(store, turn(await create(store), state=second))
    active.state = v1.TURN_STATE_COMPLETED
    await put_turns(store, active, another)


@pytest.mark.parametrize("state", TERMINAL)
async def test_ended_turns_are_not_active(store: Store, state: v1.TurnState):
    name = await create(store)
    await put_turns(store, turn(name, state=state), turn(name, state=state), turn(name, state=v1.TURN_STATE_RUNNING))
    assert len(await store.write(lambda tx: tx.turns.claims())) == 1


async def test_next_queued_is_the_one_with_the_smallest_first_sequence(store: Store):
    name = await create(store)
    late, early = turn(name, first_sequence=12), turn(name, first_sequence=9)
    done = turn(name, first_sequence=1, state=v1.TURN_STATE_COMPLETED)
    await put_turns(store, late, early, done, turn(await create(store), first_sequence=2))
    assert await store.write(lambda tx: tx.turns.next_queued(name)) == early


async def test_claimable_is_the_next_of_each_idle_session_oldest_first(store: Store):
    names = [await create(store, key(tenant)) for tenant in (TENANT, TENANT, TENANT, "other")]
    seconds = {0: (30, 10), 1: (20, 40), 2: (5, 6), 3: (15, 50)}
    turns = {}
    for index, name in enumerate(names):
        for sequence, second in enumerate(seconds[index], 1):
            turns[index, sequence] = each = turn(name, first_sequence=sequence)
            each.create_time.FromSeconds(second)
    turns[2, 1].state = v1.TURN_STATE_INPUT_REQUIRED
    await put_turns(store, *turns.values())
    found = await store.write(lambda tx: tx.turns.claimable(10))
    assert found == [turns[3, 1], turns[1, 1], turns[0, 1]]
    assert await store.write(lambda tx: tx.turns.claimable(1)) == [turns[3, 1]]


async def test_claims_are_all_active_turns_with_who_holds_them(store: Store):
    one, two = await create(store), await create(store, key("other"))
    held, waiting = turn(one, state=v1.TURN_STATE_RUNNING), turn(two, state=v1.TURN_STATE_INPUT_REQUIRED)
    await put_turns(store, turn(one))
    await put_turns(store, held, waiting, owner="instance", fence=3)
    claims = await store.write(lambda tx: tx.turns.claims())
    assert sorted(claims) == sorted(
        [Claim(one, held.turn_id, "instance", 3), Claim(two, waiting.turn_id, "instance", 3)]
    )


async def test_put_leaves_owner_and_fence_that_are_not_given(store: Store):
    name = await create(store)
    each = turn(name, state=v1.TURN_STATE_RUNNING)

    async def claim() -> tuple[str, int]:
        (found,) = await store.write(lambda tx: tx.turns.claims())
        return found.owner, found.fence

    await put_turns(store, each)
    assert await claim() == ("", 0)
    await put_turns(store, each, owner="a", fence=1)
    await put_turns(store, each)
    assert await claim() == ("a", 1)
    await put_turns(store, each, owner="b")
    assert await claim() == ("b", 1)
    await put_turns(store, each, fence=2)
    assert await claim() == ("b", 2)
    await put_turns(store, each, owner="", fence=0)
    assert await claim() == ("", 0)


async def test_pages_are_newest_first(store: Store):
    name = await create(store)
    turns = [turn(name, first_sequence=sequence, state=v1.TURN_STATE_COMPLETED) for sequence in (1, 5, 9, 12, 30)]
    turns[3].state = v1.TURN_STATE_FAILED
    await put_turns(store, *turns, turn(await create(store), first_sequence=2))
    seen, cursor = await store.turns.page(name, (), Page(2))
    assert seen == [turns[4], turns[3]]
    await put_turns(store, turn(name, first_sequence=40))
    page, cursor = await store.turns.page(name, (), Page(2, cursor))
    assert page == [turns[2], turns[1]]
    assert await store.turns.page(name, (), Page(2, cursor)) == ([turns[0]], "")
    wanted = (v1.TURN_STATE_FAILED, v1.TURN_STATE_QUEUED)
    found, _ = await store.turns.page(name, wanted, Page(10))
    assert [each.first_sequence for each in found] == [40, 12]
