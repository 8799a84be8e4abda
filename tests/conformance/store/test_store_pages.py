"""Store contract: how large a page of a list is."""

from collections.abc import Awaitable, Callable

from store_case import TENANT, create, input_request, put_inputs, put_turns, turn

from karta import v1
from karta_server.storage.contract import PAGE_BYTES, Page, SessionFilter, Store

Item = v1.Session | v1.Turn | v1.InputRequest
Read = Callable[[Page], Awaitable[tuple[list[Item], str]]]


async def pages(read: Read, size: int) -> list[list[Item]]:
    found = []
    cursor = ""
    while True:
        items, cursor = await read(Page(size, cursor))
        found.append(items)
        assert len(items) <= size
        assert len(items) == 1 or sum(item.ByteSize() for item in items) <= PAGE_BYTES
        if not cursor:
            return found


async def test_turns(store: Store):
    name = await create(store)
    large = 200 * 1024
    sizes = [10, large, large, large, large, large, large, 2 * PAGE_BYTES, 10, 10, large]
    put = [turn(name, first_sequence=n, text="x" * size) for n, size in enumerate(sizes, 1)]
    await put_turns(store, *put)
    found = await pages(lambda page: store.turns.page(name, (), page), 500)
    assert [item for page in found for item in page] == put[::-1]
    assert [len(page) for page in found] == [3, 1, 5, 2]
    assert [len(page) for page in await pages(lambda page: store.turns.page(name, (), page), 2)] == [
        2,
        1,
        1,
        2,
        2,
        2,
        1,
    ]


async def test_sessions(store: Store):
    names = [await create(store, title="x" * 300_000) for _ in range(7)]
    found = await pages(lambda page: store.sessions.page(TENANT, SessionFilter({}), page), 500)
    assert [len(page) for page in found] == [3, 3, 1]
    assert {item.session_id for page in found for item in page} == {name.session_id for name in names}


async def test_input_requests(store: Store):
    name = await create(store)
    put = [input_request(name, tool_input="x" * 300_000) for _ in range(4)] + [input_request(name) for _ in range(40)]
    await put_inputs(store, *put)
    found = await pages(lambda page: store.inputs.page(TENANT, "", "", (), page), 500)
    assert [item for page in found for item in page] == put[::-1]
    assert [len(page) for page in found] == [43, 1]


async def test_a_page_that_just_fits_is_the_last(store: Store):
    name = await create(store)
    put = [turn(name, first_sequence=n) for n in range(20)]
    await put_turns(store, *put)
    assert [len(page) for page in await pages(lambda page: store.turns.page(name, (), page), 20)] == [20]
    assert [len(page) for page in await pages(lambda page: store.turns.page(name, (), page), 19)] == [19, 1]
