"""Rows that the writer keeps in memory: what units see of each other, and what of them is left."""

import asyncio
import copy
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import Claim, Fence, Page, Recorded, SessionFilter, SessionKey, Tx
from karta_server.storage.sql import cache
from karta_server.storage.sql.store import SqlStore

TENANT = "default"
ACTIVE = (v1.TURN_STATE_RUNNING, v1.TURN_STATE_INPUT_REQUIRED)


class RefusedError(Exception):
    """What a unit of these tests raises."""


def session(name: SessionKey, **fields: Any) -> v1.Session:
    return v1.Session(tenant_id=name.tenant_id, session_id=name.session_id, state=v1.SESSION_STATE_ACTIVE, **fields)


def turn(name: SessionKey, turn_id: str, state: int, **fields: Any) -> v1.Turn:
    return v1.Turn(tenant_id=name.tenant_id, session_id=name.session_id, turn_id=turn_id, state=state, **fields)


def asked(name: SessionKey, id_: str, turn_id: str, state: int) -> v1.InputRequest:
    fields = {"tenant_id": name.tenant_id, "session_id": name.session_id}
    return v1.InputRequest(input_request_id=id_, turn_id=turn_id, state=state, **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "karta.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(path)
    await store.open()
    yield store
    await store.close()


class Statements:
    """Counts what the writer says to the database."""

    def __init__(self, store: SqlStore) -> None:
        self.texts: list[str] = []
        self._store = store

    async def __aenter__(self) -> "Statements":
        await self._store.write(lambda tx: self._connection(tx).set_trace_callback(self.texts.append))
        self.texts.clear()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._store.write(lambda tx: self._connection(tx).set_trace_callback(None))

    @staticmethod
    def _connection(tx: Any) -> sqlite3.Connection:
        return tx.sessions._connection.connection.driver_connection

    def of(self, verb: str) -> list[str]:
        return [text for text in self.texts if text.startswith(verb)]


async def test_a_group_of_units_is_a_statement_a_table(store: SqlStore):
    names = [SessionKey(TENANT, f"s{number}") for number in range(20)]
    for name in names:
        await store.write(lambda tx, name=name: tx.sessions.put(session(name)), name)

    def unit(tx: Tx, name: SessionKey) -> None:
        found = tx.sessions.get(name)
        found.title += "x"
        fence = tx.sessions.advance_fence(name)
        tx.sessions.put(found)
        tx.turns.put(turn(name, "t", v1.TURN_STATE_RUNNING), owner="o", fence=fence)
        tx.inputs.put(asked(name, f"i{name.session_id}", "t", v1.INPUT_STATE_PENDING))
        tx.sessions.set_memory(name, b"m")
        tx.requests.put(TENANT, "ada", name.session_id, Recorded(b"f", b"r"))
        assert len(tx.inputs.pending(name, "t")) == 1
        tx.append(name, [v1.Event()], None)

    async with Statements(store) as statements:
        await asyncio.gather(*(store.write(lambda tx, n=n: unit(tx, n), n) for n in names for _ in range(3)))
    groups = len(statements.of("BEGIN")) - 1
    assert groups <= 3
    assert len(statements.of("INSERT")) <= 6 * groups
    assert statements.of("SAVEPOINT") == []
    assert len([text for text in statements.of("SELECT") if "requests" not in text]) == 0
    for name in names:
        assert (await store.sessions.get(name)).title == "xxx"


async def test_rows_that_did_not_change_are_not_written(store: SqlStore):
    name = SessionKey(TENANT, "s")

    def unit(tx: Tx) -> None:
        tx.sessions.put(session(name, title="x", metadata={"a": "1"}))
        tx.turns.put(turn(name, "t", v1.TURN_STATE_RUNNING), owner="o", fence=1)
        tx.inputs.put(asked(name, "i", "t", v1.INPUT_STATE_PENDING))
        tx.sessions.set_memory(name, b"m")

    await store.write(unit, name)
    async with Statements(store) as statements:
        await store.write(unit, name)
    assert statements.of("INSERT") == statements.of("DELETE") == statements.of("UPDATE") == []


async def test_units_of_a_group_see_each_other(store: SqlStore):
    name = SessionKey(TENANT, "s")

    def create(tx: Tx) -> None:
        tx.sessions.put(session(name, title="one", metadata={"a": "1"}, user_id="ada"))
        tx.turns.put(turn(name, "t", v1.TURN_STATE_QUEUED))
        tx.inputs.put(asked(name, "i", "t", v1.INPUT_STATE_PENDING))
        tx.requests.put(TENANT, "ada", "r", Recorded(b"f", b"r"))

    def change(tx: Tx) -> None:
        found = tx.sessions.get(name)
        found.title = "two"
        tx.sessions.put(found)
        raise RefusedError

    def look(tx: Tx) -> tuple[object, ...]:
        return (
            tx.sessions.get(name).title,
            tx.sessions.find_latest(TENANT, "ada", {"a": "1"}).session_id,
            tx.turns.get(name, "t").turn_id,
            tx.turns.next_queued(name).turn_id,
            [each.turn_id for each in tx.turns.claimable(5)],
            tx.inputs.get(TENANT, "i").turn_id,
            [each.input_request_id for each in tx.inputs.pending(name, "t")],
            tx.requests.get(TENANT, "ada", "r"),
        )

    everything = ("one", "s", "t", "t", ["t"], "t", ["i"], Recorded(b"f", b"r"))
    results = await asyncio.gather(
        *(store.write(unit, name) for unit in (create, look, change, look)), store.write(look), return_exceptions=True
    )
    assert results[1] == results[3] == results[4] == everything
    assert isinstance(results[2], RefusedError)
    assert await store.write(look) == everything


async def test_the_second_active_turn_fails_alone_in_its_group(store: SqlStore):
    name = SessionKey(TENANT, "s")
    await store.write(lambda tx: tx.sessions.put(session(name)), name)

    def run(turn_id: str) -> Callable[[Tx], None]:
        return lambda tx: tx.turns.put(turn(name, turn_id, v1.TURN_STATE_RUNNING))

    def end(turn_id: str) -> Callable[[Tx], None]:
        return lambda tx: tx.turns.put(turn(name, turn_id, v1.TURN_STATE_COMPLETED))

    units = [run("b"), run("c"), end("b"), run("a"), run("b"), end("a"), run("b")]
    results = await asyncio.gather(*(store.write(unit, name) for unit in units), return_exceptions=True)
    assert [isinstance(result, KartaError) for result in results] == [False, True, False, False, True, False, False]
    assert [claim.turn_id for claim in await store.write(lambda tx: tx.turns.claims())] == ["b"]


async def test_the_next_turn_may_follow_in_the_same_unit(store: SqlStore):
    names = [SessionKey(TENANT, f"s{number}") for number in range(20)]

    def next_turn(tx: Tx, name: SessionKey, number: int) -> None:
        tx.sessions.put(session(name))
        if number:
            tx.turns.put(turn(name, f"t{9 - number}", v1.TURN_STATE_COMPLETED))
        tx.turns.put(turn(name, f"t{8 - number}", v1.TURN_STATE_RUNNING))

    for number in range(5):
        for name in names:
            await store.write(lambda tx, name=name, number=number: next_turn(tx, name, number), name)
    claims = await store.write(lambda tx: tx.turns.claims())
    assert [claim.turn_id for claim in claims] == ["t4"] * len(names)


async def test_what_an_earlier_process_wrote_is_found(path: Path):
    name = SessionKey(TENANT, "s")

    def before(tx: Tx) -> None:
        tx.sessions.put(session(name))
        tx.turns.put(turn(name, "t1", v1.TURN_STATE_QUEUED), owner="me", fence=7)
        tx.turns.put(turn(name, "t2", v1.TURN_STATE_QUEUED))
        for number in (1, 2):
            tx.inputs.put(asked(name, f"i{number}", "t1", v1.INPUT_STATE_PENDING))

    def after(tx: Tx) -> tuple[object, ...]:
        tx.inputs.put(asked(name, "i2", "t1", v1.INPUT_STATE_ANSWERED))
        tx.inputs.put(asked(name, "i3", "t1", v1.INPUT_STATE_PENDING))
        found = [each.input_request_id for each in tx.inputs.pending(name, "t1")]
        tx.turns.put(turn(name, "t1", v1.TURN_STATE_RUNNING))
        return found, tx.turns.get(name, "t2"), tx.inputs.get(TENANT, "i1").turn_id, tx.turns.claims()

    store = SqlStore(path)
    await store.open()
    await store.write(before, name)
    await store.close()
    store = SqlStore(path)
    await store.open()
    found, second, asker, claims = await store.write(after, name)
    assert (found, asker) == (["i1", "i3"], "t1")
    assert second == turn(name, "t2", v1.TURN_STATE_QUEUED)
    assert claims == [Claim(name, "t1", "me", 7)]
    await store.close()


async def test_the_database_has_the_constraint_too(path: Path, store: SqlStore):
    name = SessionKey(TENANT, "s")
    await store.write(lambda tx: tx.sessions.put(session(name)), name)
    await store.write(lambda tx: tx.turns.put(turn(name, "a", v1.TURN_STATE_RUNNING)), name)
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT INTO turns SELECT tenant_id, session_id, 'b', 2, 0, '', 0, 0, body FROM turns")
    connection.close()


async def test_what_is_known_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "_KNOWN_SESSIONS", 5)
    monkeypatch.setattr(cache, "_KNOWN_BYTES", 40_000)
    store = SqlStore(path)
    await store.open()
    names = [SessionKey(TENANT, f"s{number}") for number in range(30)]
    known: cache.Cache = await store.write(lambda tx: tx.sessions._cache)
    for size in (0, 10_000, 100_000, 0):
        for name in names:

            def unit(tx: Tx, name: SessionKey = name, size: int = size) -> None:
                tx.sessions.put(session(name, title="x" * size))
                tx.sessions.set_memory(name, b"m" * size)
                tx.turns.put(turn(name, "t", v1.TURN_STATE_RUNNING, text="x" * size))

            await store.write(unit, name)
            assert len(known._known) <= 5
            assert known._known_bytes == sum(state.measure() for state in known._known.values()) <= 40_000
    await store.close()


# A model: the same calls on dictionaries.


@dataclass
class Model:
    """What the store is meant to hold."""

    rows: dict[str, v1.Session] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    memories: dict[str, bytes] = field(default_factory=dict)
    turn_rows: dict[tuple[str, str], tuple[bytes, str, int]] = field(default_factory=dict)
    input_rows: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Recorded] = field(default_factory=dict)
    logs: dict[str, int] = field(default_factory=dict)


Step = tuple[Any, ...]
ids = st.sampled_from(["s0", "s1", "s2"])
turn_ids = st.sampled_from(["t0", "t1", "t2", "t3"])
values = st.sampled_from(["", "x", "y" * 300])
steps = st.one_of(
    st.tuples(st.just("session"), ids, values, turn_ids | st.just("")),
    st.tuples(st.just("memory"), ids, values),
    st.tuples(st.just("fence"), ids),
    st.tuples(st.just("turn"), ids, turn_ids, st.integers(1, 5), values, st.sampled_from([None, "", "me"])),
    st.tuples(st.just("input"), ids, st.sampled_from(["i0", "i1"]), turn_ids, st.integers(1, 3)),
    st.tuples(st.just("answer"), values),
    st.tuples(st.just("append"), ids, st.integers(1, 3), st.booleans()),
    st.tuples(st.just("delete"), ids),
    st.tuples(st.just("search"), values),
)
units = st.lists(st.tuples(st.lists(steps, max_size=6), st.booleans()), max_size=8)
groups = st.lists(st.tuples(units, st.sampled_from(["", "", "reopen", "kill"])), max_size=6)


def apply(model: Model, step: Step) -> object:
    """Do a step on the model; return what it answers, or raise KeyError where the store refuses."""
    kind, *rest = step
    if kind == "search":
        found = [key for key, row in model.rows.items() if row.metadata == {"v": rest[0]}]
        active = sorted((key, id_) for (key, id_), row in model.turn_rows.items() if state_of(row) in ACTIVE)
        return bool(found), active
    if kind == "answer":
        model.answers[rest[0]] = Recorded(rest[0].encode(), b"r")
        return None
    key = rest[0]
    if kind == "session":
        model.rows[key] = session(SessionKey(TENANT, key), metadata={"v": rest[1]}, active_turn_id=rest[2])
        return None
    model.rows[key]
    if kind == "memory":
        model.memories[key] = rest[1].encode()
    elif kind == "fence":
        model.fences[key] = model.fences.get(key, 0) + 1
        return model.fences[key]
    elif kind == "turn":
        return put_turn(model, *rest)
    elif kind == "input":
        _, id_, turn_id, state = rest
        model.input_rows[key + id_] = asked(SessionKey(TENANT, key), key + id_, turn_id, state).SerializeToString()
        return pending(model, key, turn_id)
    elif kind == "append":
        if rest[2] and model.rows[key].active_turn_id != "t0":
            raise KeyError
        model.logs[key] = model.logs.get(key, 0) + rest[1]
        return model.logs[key]
    elif kind == "delete":
        for table in (model.rows, model.fences, model.memories, model.logs):
            table.pop(key, None)
        model.turn_rows = {id_: row for id_, row in model.turn_rows.items() if id_[0] != key}
        model.input_rows = {id_: row for id_, row in model.input_rows.items() if not id_.startswith(key)}
    return None


def state_of(row: tuple[bytes, str, int]) -> int:
    return v1.Turn.FromString(row[0]).state


def put_turn(model: Model, key: str, turn_id: str, state: int, text: str, owner: str | None) -> object:
    others = [row for id_, row in model.turn_rows.items() if id_[0] == key and id_[1] != turn_id]
    if state in ACTIVE and any(state_of(row) in ACTIVE for row in others):
        raise KeyError
    _, before, fence = model.turn_rows.get((key, turn_id), (b"", "", 0))
    body = turn(SessionKey(TENANT, key), turn_id, state, text=text).SerializeToString()
    model.turn_rows[key, turn_id] = (body, before if owner is None else owner, fence)
    return None


def pending(model: Model, key: str, turn_id: str) -> list[str]:
    rows = [v1.InputRequest.FromString(body) for id_, body in sorted(model.input_rows.items()) if id_.startswith(key)]
    return [row.input_request_id for row in rows if row.turn_id == turn_id and row.state == v1.INPUT_STATE_PENDING]


def do(tx: Tx, step: Step) -> object:
    """Do a step on the store, as `apply` does on the model."""
    kind, *rest = step
    if kind == "search":
        found = tx.sessions.find_latest(TENANT, "", {"v": rest[0]})
        return found is not None, sorted((claim.session.session_id, claim.turn_id) for claim in tx.turns.claims())
    if kind == "answer":
        return tx.requests.put(TENANT, "ada", rest[0], Recorded(rest[0].encode(), b"r"))
    key = SessionKey(TENANT, rest[0])
    if kind == "session":
        tx.sessions.put(session(key, metadata={"v": rest[1]}, active_turn_id=rest[2]))
    elif kind == "memory":
        tx.sessions.set_memory(key, rest[1].encode())
    elif kind == "fence":
        return tx.sessions.advance_fence(key)
    elif kind == "turn":
        tx.turns.put(turn(key, rest[1], rest[2], text=rest[3]), owner=rest[4])
    elif kind == "input":
        _, id_, turn_id, state = rest
        tx.inputs.put(asked(key, key.session_id + id_, turn_id, state))
        return [each.input_request_id for each in tx.inputs.pending(key, turn_id)]
    elif kind == "append":
        fence = Fence("t0", fence_of(tx, key)) if rest[2] else None
        return tx.append(key, [v1.Event() for _ in range(rest[1])], fence)
    elif kind == "delete":
        tx.sessions.delete(key)
    return None


def fence_of(tx: Any, key: SessionKey) -> int:
    return tx.sessions._cache.find(key).row.fence


async def matches(store: SqlStore, model: Model) -> None:
    """Compare all that there is, inside of a unit and outside."""
    found, _ = await store.sessions.page(TENANT, SessionFilter({}), Page(100))
    assert {each.session_id for each in found} == set(model.rows)
    for each in found:
        key, id_ = SessionKey(TENANT, each.session_id), each.session_id
        assert await store.write(lambda tx, key=key: tx.sessions.get(key)) == each
        assert (each.metadata, each.active_turn_id) == (model.rows[id_].metadata, model.rows[id_].active_turn_id)
        assert each.latest_sequence == model.logs.get(id_, 0)
        assert await store.sessions.memory(key) == model.memories.get(id_, b"")
        frames = await store.events.read(key, 0, 1 << 30)
        events = v1.EventFrame.FromString(frames.data).events if frames else ()
        assert [event.sequence for event in events] == list(range(1, model.logs.get(id_, 0) + 1))
        turns, _ = await store.turns.page(key, (), Page(100))
        expected = {name[1]: row for name, row in model.turn_rows.items() if name[0] == id_}
        assert {each.turn_id: each.SerializeToString() for each in turns} == {n: row[0] for n, row in expected.items()}
    requests, _ = await store.inputs.page(TENANT, "", "", (), Page(100))
    assert {each.input_request_id: each.SerializeToString() for each in requests} == model.input_rows
    claims = {
        (claim.session.session_id, claim.turn_id): claim for claim in await store.write(lambda tx: tx.turns.claims())
    }
    assert {name: claim.owner for name, claim in claims.items()} == {
        name: row[1] for name, row in model.turn_rows.items() if state_of(row) in ACTIVE
    }
    for name, recorded in model.answers.items():
        assert await store.requests.get(TENANT, "ada", name) == recorded


async def run_group(store: SqlStore, model: Model, given: list[tuple[list[Step], bool]]) -> Model:
    """Submit units at once; return the model after those that did not fail."""

    def unit(tx: Tx, todo: list[Step], fails: bool) -> list[object]:
        answers = []
        for step in todo:
            try:
                answers.append(do(tx, step))
            except KartaError:
                answers.append("refused")
        if fails:
            raise RefusedError
        return answers

    keys = [SessionKey(TENANT, f"s{number}") for number in range(3)]
    writes = [store.write(lambda tx, t=todo, f=fails: unit(tx, t, f), *keys) for todo, fails in given]
    results = await asyncio.gather(*writes, return_exceptions=True)
    for (todo, fails), result in zip(given, results, strict=True):
        after = copy.deepcopy(model)
        expected: list[object] = []
        for step in todo:
            try:
                expected.append(apply(after, step))
            except KeyError:
                expected.append("refused")
        if fails:
            assert isinstance(result, RefusedError)
        else:
            assert result == expected
            model = after
    return model


def copied(path: Path, number: int) -> Path:
    """Return a copy of the database as a kill would leave it: what is in its files now."""
    target = path.with_name(f"killed-{number}.db")
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            Path(f"{target}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    return target


@settings(max_examples=60, deadline=None)
@given(given=groups)
def test_any_units_equal_the_model(given: list[Any], tmp_path_factory: pytest.TempPathFactory):
    async def compare() -> None:
        path = tmp_path_factory.mktemp("rows") / "karta.db"
        store = SqlStore(path)
        await store.open()
        model = Model()
        for number, (todo, then) in enumerate(given):
            model = await run_group(store, model, todo)
            if then:
                before = store
                path = copied(path, number) if then == "kill" else path
                if then == "reopen":
                    await before.close()
                store = SqlStore(path)
                await store.open()
                if then == "kill":
                    await before.close()
            await matches(store, model)
        await store.close()

    asyncio.run(compare())
