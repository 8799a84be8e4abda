"""Store contract: input requests, request_ids, and cursors."""

import base64

import pytest
from store_case import DAY_SECONDS, TENANT, Clock, create, input_request, key, listen, put_inputs, texts

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import Page, Recorded, SessionFilter, Store, Tx

SECOND = 1


async def test_put_and_get_give_back_every_field(store: Store):
    name = await create(store)
    put = input_request(
        name,
        kind=v1.INPUT_KIND_QUESTION,
        title="Which?",
        tool_input='{"a": 1}',
        questions=[v1.Question(question="Which?", options=[v1.QuestionOption(label="A")])],
        options=[v1.INPUT_OPTION_ANSWER],
    )
    inside = await store.write(lambda tx: (tx.inputs.put(put), tx.inputs.get(TENANT, put.input_request_id))[1], name)
    assert inside == put
    assert await store.inputs.get(TENANT, put.input_request_id) == put
    assert await store.inputs.get("other", put.input_request_id) is None
    assert await store.write(lambda tx: tx.inputs.get("other", put.input_request_id)) is None


async def test_pending_are_the_turns_own_in_order(store: Store):
    name = await create(store)
    first, second = input_request(name), input_request(name)
    answered = input_request(name, state=v1.INPUT_STATE_ANSWERED)
    await put_inputs(store, second, first, answered, input_request(name, turn_id="another"))
    assert await store.write(lambda tx: tx.inputs.pending(name, "turn")) == [first, second]


async def test_commit_has_the_requests_as_they_are_in_the_order_of_change(store: Store):
    name = await create(store)
    first, second = input_request(name), input_request(name)
    heard = listen(store)

    def unit(tx: Tx) -> None:
        tx.inputs.put(first)
        tx.inputs.put(second)
        first.state = v1.INPUT_STATE_CANCELLED
        tx.inputs.put(first)

    await store.write(unit, name)
    (commit,) = heard
    assert commit.inputs == [second, first]
    assert commit.frames is None
    second.title = "changed after the unit"
    assert commit.inputs[0].title == ""


async def test_pages_filter_and_are_newest_first(store: Store):
    one, two, foreign = await create(store), await create(store), await create(store, key("other"))
    requests = [
        input_request(one),
        input_request(one, state=v1.INPUT_STATE_ANSWERED),
        input_request(one, turn_id="another"),
        input_request(two),
    ]
    await put_inputs(store, *requests, input_request(foreign))

    async def found(session_id: str = "", turn_id: str = "", *states: int) -> list[v1.InputRequest]:
        return (await store.inputs.page(TENANT, session_id, turn_id, states, Page(10)))[0]

    assert await found() == requests[::-1]
    assert await found(one.session_id) == requests[2::-1]
    assert await found(one.session_id, "turn") == requests[1::-1]
    assert await found(one.session_id, "turn", v1.INPUT_STATE_PENDING) == [requests[0]]
    assert await found("", "", v1.INPUT_STATE_ANSWERED, v1.INPUT_STATE_CANCELLED) == [requests[1]]
    first, cursor = await store.inputs.page(TENANT, "", "", (), Page(3))
    await put_inputs(store, input_request(one))
    second, end = await store.inputs.page(TENANT, "", "", (), Page(3, cursor))
    assert (first + second, end) == (requests[::-1], "")


async def test_answers_are_kept_for_a_day(store: Store, clock: Clock):
    recorded = Recorded(b"fingerprint", b"\x00response")

    async def kept(tenant_id: str = TENANT, principal: str = "ada", request_id: str = "r") -> Recorded | None:
        found = await store.write(lambda tx: tx.requests.get(tenant_id, principal, request_id))
        assert await store.requests.get(tenant_id, principal, request_id) == found
        return found

    assert await kept() is None
    await store.write(lambda tx: tx.requests.put(TENANT, "ada", "r", recorded))
    assert await kept() == recorded
    assert await kept(tenant_id="other") is None
    assert await kept(principal="eve") is None
    assert await kept(request_id="s") is None
    clock.advance(DAY_SECONDS - SECOND)
    assert await kept() == recorded
    clock.advance(2 * SECOND)
    assert await kept() is None
    again = Recorded(b"another", b"")
    await store.write(lambda tx: tx.requests.put(TENANT, "ada", "r", again))
    assert await kept() == again


async def test_expire_removes_a_thousand_at_a_time(store: Store, clock: Clock):
    def unit(tx: Tx) -> None:
        for number in range(1_500):
            tx.requests.put(TENANT, "ada", str(number), Recorded(b"f", b"r"))

    await store.write(unit)
    clock.advance(DAY_SECONDS + SECOND)
    await store.write(lambda tx: tx.requests.put(TENANT, "ada", "new", Recorded(b"f", b"r")))
    assert [await store.write(lambda tx: tx.requests.expire()) for _ in range(3)] == [1_000, 500, 0]
    assert await store.write(lambda tx: tx.requests.get(TENANT, "ada", "new")) is not None


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "nonsense!",
        "ä",
        "\x00",
        "\ud800",
        "A" * 100_000,
        encoded("7"),
        encoded("[]"),
        encoded("{}"),
        encoded("[" * 1_000),
        encoded('["sessions"]'),
        encoded('["sessions",1,2]'),
        encoded('["sessions",-1,"a"]'),
        encoded('["sessions",true,"a"]'),
        encoded('["sessions",1e3,"a"]'),
        encoded('["sessions",99999999999999999999,"a"]'),
        encoded('["sessions",1,"\\ud800"]'),
        encoded('["turns","a","b"]'),
        encoded('["inputs",1]'),
    ],
)
async def test_a_malformed_cursor_is_named(store: Store, cursor: str):
    name = await create(store)
    for read in (
        store.sessions.page(TENANT, SessionFilter({}), Page(1, cursor)),
        store.turns.page(name, (), Page(1, cursor)),
        store.inputs.page(TENANT, "", "", (), Page(1, cursor)),
    ):
        with pytest.raises(KartaError) as caught:
            await read
        assert caught.value.reason == v1.ERROR_REASON_FIELD_INVALID
        assert caught.value.metadata["field"] == "page_token"


async def test_a_cursor_of_another_list_is_malformed(store: Store):
    name = await create(store)
    await create(store)
    await store.append(name, texts("a"), None)
    _, cursor = await store.sessions.page(TENANT, SessionFilter({}), Page(1))
    with pytest.raises(KartaError, match="page_token"):
        await store.turns.page(name, (), Page(1, cursor))
