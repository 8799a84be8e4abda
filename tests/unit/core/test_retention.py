"""How much of a log is kept."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from karta import v1
from karta_server.core import retention
from karta_server.core.retention import Retention
from karta_server.ids import new_id
from karta_server.storage.contract import SessionKey, Tx
from karta_server.storage.sql.store import SqlStore


class Clock:
    """The store's; behind the real one by `ago_seconds`."""

    ago_seconds = 0

    def __call__(self) -> int:
        return time.time_ns() - self.ago_seconds * 1_000_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SqlStore]:
    store = SqlStore(tmp_path / "karta.db", clock=clock)
    await store.open()
    yield store
    await store.close()


async def create(store: SqlStore, events: int) -> SessionKey:
    name = SessionKey("default", new_id())
    session = v1.Session(tenant_id="default", session_id=name.session_id, state=v1.SESSION_STATE_ACTIVE)
    await store.write(lambda tx: tx.sessions.put(session), name)
    for _ in range(events):
        await store.append(name, [v1.Event()], None)
    return name


async def kept(store: SqlStore, name: SessionKey) -> list[int]:
    frames = await store.events.read(name, 0, 1 << 30)
    return [event.sequence for event in v1.EventFrame.FromString(frames.data).events] if frames else []


async def trim(store: SqlStore, max_events: int = 0, max_age_seconds: float = 0) -> int:
    return await Retention(store, max_events, max_age_seconds).trim_all()


async def test_by_count(store: SqlStore):
    names = [await create(store, count) for count in (0, 5, 12)]
    assert await trim(store, max_events=5) == 1
    assert [len(await kept(store, name)) for name in names] == [0, 5, 5]
    assert await kept(store, names[2]) == [8, 9, 10, 11, 12]
    assert await trim(store, max_events=5) == 0


async def test_by_age_but_the_newest(store: SqlStore, clock: Clock):
    clock.ago_seconds = 100
    name, silent = await create(store, 3), await create(store, 2)
    clock.ago_seconds = 0
    await store.append(name, [v1.Event()], None)
    assert await trim(store, max_age_seconds=1_000) == 0
    assert await trim(store, max_age_seconds=50) == 2
    assert await kept(store, name) == [4]
    assert await kept(store, silent) == [2]


@pytest.mark.parametrize("runs", [True, False])
async def test_turns_that_are_not_terminal_keep_all_of_theirs(store: SqlStore, clock: Clock, runs: bool):
    clock.ago_seconds = 100
    name = await create(store, 10)
    turn = v1.Turn(tenant_id="default", session_id=name.session_id, turn_id=new_id())

    def admit(tx: Tx) -> None:
        session = tx.sessions.get(name)
        assert session is not None
        turn.first_sequence = tx.append(name, [v1.Event()], None)
        turn.create_time.FromSeconds(int(time.time()) - 101)
        turn.state = v1.TURN_STATE_RUNNING if runs else v1.TURN_STATE_QUEUED
        tx.turns.put(turn)
        session.active_turn_id, session.queued_turn_count = (turn.turn_id, 0) if runs else ("", 1)
        tx.sessions.put(session)

    await store.write(admit, name)
    last = await store.append(name, [v1.Event(), v1.Event()], None)
    clock.ago_seconds = 0
    assert await trim(store, max_events=1) == 1
    assert await kept(store, name) == list(range(11, last + 1))
    assert await trim(store, max_events=1, max_age_seconds=50) == 0
    assert await trim(store, max_age_seconds=50) == 0

    def end(tx: Tx) -> None:
        session = tx.sessions.get(name)
        assert session is not None
        turn.state = v1.TURN_STATE_COMPLETED
        tx.turns.put(turn)
        session.active_turn_id, session.queued_turn_count = "", 0
        tx.sessions.put(session)
        tx.append(name, [v1.Event()], None)

    await store.write(end, name)
    assert await trim(store, max_age_seconds=50) == 1
    assert await kept(store, name) == [last + 1]


async def test_it_runs_beside_all_else_and_ends(store: SqlStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention, "_ROUND_SECONDS", 0.01)
    name = await create(store, 20)
    running = Retention(store, 3, 0)
    running.start()
    async with asyncio.timeout(10):
        while len(await kept(store, name)) > 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await running.close()
    await store.append(name, [v1.Event()], None)
    await asyncio.sleep(0.05)
    assert len(await kept(store, name)) == 4


async def test_without_a_bound_there_is_no_task(store: SqlStore):
    running = Retention(store, 0, 0)
    before = asyncio.all_tasks()
    running.start()
    assert asyncio.all_tasks() == before
    await running.close()


async def test_a_store_that_is_away_ends_nothing(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(retention, "_ROUND_SECONDS", 0.01)
    running = Retention(store, 3, 0)
    await store.close()
    running.start()
    async with asyncio.timeout(10):
        while caplog.text.count("cannot trim") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await running.close()
