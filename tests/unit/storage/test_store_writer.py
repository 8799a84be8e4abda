"""The writer of the SQL store: groups, bounds, failures, death."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from karta import v1
from karta_server.errors import KartaError
from karta_server.ids import new_id
from karta_server.storage.contract import Commit, SessionKey, Tx
from karta_server.storage.sql import dialect, writer
from karta_server.storage.sql.chunks import CHUNK_BYTES
from karta_server.storage.sql.dialect import Query
from karta_server.storage.sql.operation import Bounds
from karta_server.storage.sql.store import SqlStore
from karta_server.storage.sql.transaction import Transaction

ALL = 1 << 30
WAIT_SECONDS = 10


def texts(*values: str) -> list[v1.Event]:
    return [v1.Event(text=v1.TextDelta(text=value)) for value in values]


async def create(store: SqlStore) -> SessionKey:
    name = SessionKey("default", new_id())
    await store.write(lambda tx: put(tx, name), name)
    return name


def put(tx: Tx, name: SessionKey) -> None:
    tx.sessions.put(v1.Session(tenant_id=name.tenant_id, session_id=name.session_id, state=v1.SESSION_STATE_ACTIVE))


async def read(store: SqlStore, name: SessionKey) -> list[v1.Event]:
    frames = await store.events.read(name, 0, ALL)
    return list(v1.EventFrame.FromString(frames.data).events) if frames else []


class Gate:
    """Holds the writer's thread in a unit until it is opened."""

    def __init__(self, store: SqlStore) -> None:
        self._entered = asyncio.Event()
        self._open = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._store = store

    def _unit(self, _tx: Tx) -> None:
        self._loop.call_soon_threadsafe(self._entered.set)
        assert self._open.wait(WAIT_SECONDS)

    async def __aenter__(self) -> "Gate":
        self._write = asyncio.ensure_future(self._store.write(self._unit))
        await self._entered.wait()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._open.set()
        await self._write

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "karta.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(path)
    await store.open()
    yield store
    await store.close()


async def test_what_waits_is_one_group_and_comes_back_in_one_call(store: SqlStore, monkeypatch: pytest.MonkeyPatch):
    names = [await create(store) for _ in range(10)]
    groups: list[Sequence[Commit]] = []
    store.subscribe(groups.append)
    calls: list[object] = []
    loop = asyncio.get_running_loop()
    call = loop.call_soon_threadsafe
    async with Gate(store):
        appends = [asyncio.ensure_future(store.append(name, texts("a", "b"), None)) for name in names for _ in range(5)]
        await asyncio.sleep(0)
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *a, **k: (calls.append(a), call(*a, **k))[1])
    assert await asyncio.gather(*appends) == [2, 4, 6, 8, 10] * 10
    assert len(calls) == 2  # The gate's own group, and the group of what waited.
    assert [len(group) for group in groups] == [10]


async def test_a_group_is_bounded(path: Path):
    store = SqlStore(path, bounds=Bounds(group_operations=7))
    await store.open()
    name = await create(store)
    sizes: list[int] = []
    store.subscribe(lambda commits: sizes.append(sum(c.frames.last - c.frames.first + 1 for c in commits if c.frames)))
    async with Gate(store):
        appends = [asyncio.ensure_future(store.append(name, texts("a"), None)) for _ in range(20)]
        await asyncio.sleep(0)
    await asyncio.gather(*appends)
    await store.close()
    assert sizes == [7, 7, 6]


@pytest.mark.parametrize("bounds", [Bounds(queue_operations=4), Bounds(queue_bytes=400)])
async def test_callers_wait_for_room_in_order(path: Path, bounds: Bounds):
    store = SqlStore(path, bounds=bounds)
    await store.open()
    name = await create(store)
    async with Gate(store):
        appends = [asyncio.ensure_future(store.append(name, texts(f"{number:0100}"), None)) for number in range(50)]
        await asyncio.sleep(0)
        assert store._writer._queue.qsize() <= 4
        appends[40].cancel()  # Which waits for room, and is written all the same.
        big = asyncio.ensure_future(store.append(name, texts("x" * 10_000), None))  # More than there ever is room for.
        await asyncio.sleep(0)
    results = await asyncio.gather(*appends, return_exceptions=True)
    assert [result for result in results if isinstance(result, int)] == [n for n in range(1, 51) if n != 41]
    assert await big == 51
    assert [int(event.text.text) for event in (await read(store, name))[:50]] == list(range(50))
    await store.close()


async def test_more_than_may_wait_is_refused(path: Path):
    store = SqlStore(path, bounds=Bounds(queue_operations=2, waiting_operations=3))
    await store.open()
    name = await create(store)
    async with Gate(store):
        appends = [asyncio.ensure_future(store.append(name, texts("a"), None)) for _ in range(6)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*appends, return_exceptions=True)
    assert results[:4] == [1, 2, 3, 4]  # The gate and one are in the queue, three wait.
    assert [getattr(result, "reason", None) for result in results[4:]] == [v1.ERROR_REASON_STORE_UNAVAILABLE] * 2
    assert await store.append(name, texts("a"), None) == 5
    await store.close()


async def test_close_writes_what_waits_for_room(path: Path):
    store = SqlStore(path, bounds=Bounds(queue_operations=2))
    await store.open()
    name = await create(store)
    async with Gate(store) as gate:
        appends = [asyncio.ensure_future(store.append(name, texts("a"), None)) for _ in range(20)]
        await asyncio.sleep(0)
        close = asyncio.ensure_future(store.close())
        await asyncio.sleep(0)
        with pytest.raises(KartaError):
            await store.append(name, texts("late"), None)
        gate.open()
        await close
    assert await asyncio.gather(*appends) == list(range(1, 21))
    assert threading.active_count() == len(threading.enumerate())
    assert not [thread for thread in threading.enumerate() if thread.name == "karta-store-writer"]


async def test_a_locked_database_is_unavailable_and_then_is_not(
    path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
):
    name = await create(store)
    await store.close()
    monkeypatch.setattr(dialect, "_WRITER_PRAGMAS", ("PRAGMA busy_timeout = 50", *dialect._WRITER_PRAGMAS[1:]))
    store = SqlStore(path)
    await store.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with asyncio.timeout(WAIT_SECONDS):
        results = await asyncio.gather(
            *(store.append(name, texts("a"), None) for _ in range(5)),
            store.write(lambda tx: tx.sessions.advance_fence(name), name),
            return_exceptions=True,
        )
    assert [getattr(result, "reason", None) for result in results] == [v1.ERROR_REASON_STORE_UNAVAILABLE] * 6
    assert await read(store, name) == []
    other.execute("ROLLBACK")
    other.close()
    assert await store.append(name, texts("a"), None) == 1
    assert await store.write(lambda tx: tx.sessions.advance_fence(name), name) == 1
    await store.close()


async def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dialect, "_WRITER_PRAGMAS", (*dialect._WRITER_PRAGMAS, "PRAGMA max_page_count = 100"))
    store = SqlStore(path)
    await store.open()
    name, other = await create(store), await create(store)
    heard: list[Commit] = []
    store.subscribe(heard.extend)

    def too_large(tx: Tx) -> None:
        tx.append(name, texts("never"), None)
        tx.sessions.set_memory(name, b"x" * 1_000_000)

    async with Gate(store):
        writes = [
            asyncio.ensure_future(write)
            for write in (
                store.append(name, texts("1"), None),
                store.append(name, texts("x" * 1_000_000), None),
                store.append(other, texts("1"), None),
                store.write(too_large, name),
                store.append(name, texts("2"), None),
                store.write(lambda tx: tx.append(name, texts("3"), None), name),
            )
        ]
        await asyncio.sleep(0)
    results = await asyncio.gather(*writes, return_exceptions=True)
    for index, result in enumerate(results):
        if index in (1, 3):
            assert isinstance(result, KartaError)
            assert result.reason == v1.ERROR_REASON_STORE_UNAVAILABLE
            assert "full" in result.message
    assert [result for result in results if isinstance(result, int)] == [1, 1, 2, 3]
    assert [event.text.text for event in await read(store, name)] == ["1", "2", "3"]
    sequences = [(c.frames.first, c.frames.last) for c in heard if c.frames and c.session == name]
    assert sequences == [(1, 1), (2, 2), (3, 3)]
    await store.close()


async def test_the_death_of_the_thread_fails_all_who_wait(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    name = await create(store)

    def die(*_arguments: object) -> None:
        raise SystemExit

    async with Gate(store):
        waiting = [asyncio.ensure_future(store.append(name, texts("a"), None)) for _ in range(10)]
        await asyncio.sleep(0)
        monkeypatch.setattr(Transaction, "transact", die)
    async with asyncio.timeout(WAIT_SECONDS):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(result, "reason", None) for result in results] == [v1.ERROR_REASON_STORE_UNAVAILABLE] * 10
    with pytest.raises(KartaError) as caught:
        await store.append(name, texts("a"), None)
    assert caught.value.reason == v1.ERROR_REASON_STORE_UNAVAILABLE
    assert "writer ended" in caplog.text
    assert await store.sessions.get(name) is not None


async def test_a_busy_loop_does_not_keep_the_writer_out(store: SqlStore):
    name = await create(store)
    done = False

    async def spin() -> None:
        while not done:
            for _ in range(200):
                v1.Event(text=v1.TextDelta(text="x")).SerializeToString()
            await asyncio.sleep(0)

    spinning = asyncio.ensure_future(spin())
    async with asyncio.timeout(20):
        for number in range(100):
            assert await store.append(name, texts("a"), None) == number + 1
    done = True
    await spinning


async def test_the_loop_lets_the_writer_in_while_it_waits_for_it(store: SqlStore, monkeypatch: pytest.MonkeyPatch):
    given: list[float] = []
    enough = asyncio.Event()

    def give(seconds: float) -> None:
        given.append(seconds)
        if len(given) == 3:
            enough.set()

    monkeypatch.setattr(writer.time, "sleep", give)
    async with asyncio.timeout(WAIT_SECONDS), Gate(store):
        await enough.wait()
    count = len(given)
    await asyncio.sleep(0.05)
    assert len(given) == count  # With nothing on its way there is nobody to let in.


async def test_chunks_are_bounded(path: Path, store: SqlStore):
    name = await create(store)
    values = ["x" * 10_000] * 200 + ["y" * 1_000_000, "z"]
    await asyncio.gather(store.append(name, texts(*values), None), store.append(name, texts(*values), None))
    connection = sqlite3.connect(path)
    chunks = connection.execute(
        "SELECT first_sequence, last_sequence, length(frames) FROM event_chunks ORDER BY last_sequence"
    ).fetchall()
    connection.close()
    assert [first for first, _, _ in chunks] == [1, *(last + 1 for _, last, _ in chunks[:-1])]
    assert chunks[-1][1] == len(values) * 2
    assert all(size <= CHUNK_BYTES or first == last for first, last, size in chunks)
    assert len(chunks) < 30
    assert [event.text.text for event in await read(store, name)] == values * 2


async def test_readers_cannot_write(store: SqlStore):
    name = await create(store)
    query = Query.__new__(Query)
    query.sql, query._names, query._own = "DELETE FROM sessions", [], {}
    with pytest.raises(KartaError, match="readonly"):
        await store._connections.all(query)
    assert await store.sessions.get(name) is not None


async def test_more_readers_than_connections_all_get_their_turn(store: SqlStore):
    name = await create(store)
    await store.append(name, texts("a"), None)
    reads = [asyncio.ensure_future(store.events.read(name, 0, ALL)) for _ in range(50)]
    await asyncio.sleep(0)
    for read_task in reads[::3]:
        read_task.cancel()
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert all(frames is not None for frames in results)
    assert await store.events.read(name, 0, ALL) is not None


def size(path: Path) -> int:
    """Return the size of a database that is closed: there is no other file of it."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return path.stat().st_size


async def test_space_of_deleted_sessions_is_given_back(path: Path):
    store = SqlStore(path)
    await store.open()
    name = await create(store)
    await store.append(name, texts(*["x" * 100_000] * 50), None)
    await store.close()
    before = size(path)
    store = SqlStore(path)
    await store.open()
    await store.write(lambda tx: tx.sessions.delete(name), name)
    await store.close()
    assert before > 5_000_000
    assert size(path) < 1_000_000


KILLED = """
import asyncio, sys
from pathlib import Path
from karta import v1
from karta_server.storage.contract import SessionKey
from karta_server.storage.sql.store import SqlStore

def put(tx, name):
    tx.sessions.put(v1.Session(tenant_id=name.tenant_id, session_id=name.session_id, state=1))

async def write(store, name):
    await store.write(lambda tx: put(tx, name), name)
    while True:
        last = await store.append(name, [v1.Event(text=v1.TextDelta(text="x" * 50)) for _ in range(3)], None)
        last = await store.write(lambda tx: tx.append(name, [v1.Event()], None), name)
        print(name.session_id, last, flush=True)

async def main():
    store = SqlStore(Path(sys.argv[1]))
    await store.open()
    await asyncio.gather(*(write(store, SessionKey("default", f"s{index}")) for index in range(8)))

asyncio.run(main())
"""


def write_until_killed(path: Path, environment: dict[str, str]) -> dict[str, int]:
    """Return what the writers saw as written, by session."""
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    seen: dict[str, int] = {}
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout):
            if count == 400:
                process.send_signal(signal.SIGKILL)
            if line.endswith("\n"):  # The last one may be torn.
                name, last = line.split()
                seen[name] = int(last)
    assert process.returncode == -signal.SIGKILL
    return seen


async def test_a_killed_writer_leaves_no_gap_and_all_that_was_visible(path: Path, environment: dict[str, str]):
    seen = await asyncio.to_thread(write_until_killed, path, environment)
    assert len(seen) == 8
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()
    store = SqlStore(path)
    await store.open()
    for session_id, visible in seen.items():
        found = await read(store, SessionKey("default", session_id))
        assert [event.sequence for event in found] == list(range(1, len(found) + 1))
        assert len(found) >= visible
        session = await store.sessions.get(SessionKey("default", session_id))
        assert session is not None
        assert session.latest_sequence == len(found)
    await store.close()
