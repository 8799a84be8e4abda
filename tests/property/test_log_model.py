"""Any interleaving of appends, units, watches, cuts, trims, deletions and restarts equals a simple list.

The store and the watching side are the real ones; sizes of chunks, frames and what is kept in memory vary, so
that every border between them is crossed.
"""

# Errors may come or not, and both are judged.
# ruff: noqa: PT017

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from log_model import Entry, LogModel

from karta import v1
from karta_server.core import session_log
from karta_server.core.session_log import SessionLog
from karta_server.errors import KartaError
from karta_server.ids import new_id
from karta_server.services.frames import session_frames
from karta_server.storage.contract import Fence, SessionKey, Tx
from karta_server.storage.sql import chunks
from karta_server.storage.sql.store import SqlStore

STEP_SECONDS = 20
BEGIN_MICROS = 1_700_000_000_000_000
NOT_FOUND = v1.ERROR_REASON_SESSION_NOT_FOUND
SIZES = {
    (session_log, "FRAME_BYTES"): [1, 200, 4000, 512 * 1024],
    (session_log, "RECENT_FRAMES"): [1, 3, 256],
    (session_log, "RECENT_BYTES"): [1, 1000, 512 * 1024],
    (session_log, "ALL_RECENT_BYTES"): [1, 2000, 64 * 1024 * 1024],
    (chunks, "CHUNK_BYTES"): [1, 200, 4000, 256 * 1024],
}

which = st.integers(0, 3)
batches = st.lists(
    st.tuples(st.sampled_from(["text", "reasoning"]), st.sampled_from(["", "a", "é" * 60, "x" * 3000])), max_size=5
)
kinds_filters = st.sampled_from([frozenset(), frozenset({"text"}), frozenset({"reasoning"}), frozenset({"error"})])
Batch = list[tuple[str, str]]


class Write(NamedTuple):
    """One write of several that are submitted at once, and so share transactions."""

    how: str
    target: int
    other: int
    batch: Batch
    keep: int


writes = st.builds(
    Write,
    how=st.sampled_from(
        ["append", "fenced", "fenced", "late fence", "other turn", "unit", "failing unit", "both", "acquire", "trim"]
    ),
    target=which,
    other=which,
    batch=batches,
    keep=st.integers(0, 8),
)


class Watcher(NamedTuple):
    """An open stream of a session's log; `position` is where it is."""

    index: int
    kinds: frozenset[str]
    frames: AsyncGenerator[bytes, None]
    position: list[int]


class UnitError(Exception):
    """A unit that fails on purpose."""


class Clock:
    micros = BEGIN_MICROS

    def __call__(self) -> int:
        return self.micros * 1_000


class LogMachine(RuleBasedStateMachine):
    """The store and the log beside their models."""

    template: Path

    @initialize(sizes=st.fixed_dictionaries({place: st.sampled_from(sizes) for place, sizes in SIZES.items()}))
    def begin(self, sizes: dict[Any, int]) -> None:
        self.patches = pytest.MonkeyPatch()
        for (module, name), size in sizes.items():
            self.patches.setattr(module, name, size)
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.template, self.folder / "karta.db")
        self.clock = Clock()
        self.names: list[SessionKey] = []
        self.models: list[LogModel] = []
        self.stored: dict[tuple[int, int], bytes] = {}
        self.watchers: list[Watcher] = []
        self.groups = 0
        self.run(self.open())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.runner.run(asyncio.wait_for(work, STEP_SECONDS))

    async def open(self) -> None:
        self.store = SqlStore(self.folder / "karta.db", clock=self.clock)
        await self.store.open()
        self.log = SessionLog(self.store)

    async def close(self) -> None:
        for watcher in self.watchers:
            await watcher.frames.aclose()
        self.watchers.clear()
        self.log.close()
        await self.store.close()

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.run(self.compare_all())
            self.run(self.close())
        finally:
            self.runner.close()
            self.patches.undo()
            shutil.rmtree(self.folder)

    # Rules.

    @precondition(lambda self: len(self.names) < 4)
    @rule()
    def create(self) -> None:
        name = SessionKey("default", new_id())
        self.names.append(name)
        self.models.append(LogModel())
        session = v1.Session(tenant_id=name.tenant_id, session_id=name.session_id, state=v1.SESSION_STATE_ACTIVE)
        self.run(self.store.write(lambda tx: tx.sessions.put(session), name))

    @precondition(lambda self: self.names)
    @rule(batch=st.lists(writes, min_size=1, max_size=6))
    def write(self, batch: list[Write]) -> None:
        async def all_at_once() -> None:
            expected, work = [], []
            self.groups += 1
            for write in batch:
                write = write._replace(target=write.target % len(self.names), other=write.other % len(self.names))
                # The model first: a fence is what it is when the write's turn comes.
                call = self.prepare(write)
                expected.append(self.apply(write))
                work.append(call)
            results = await asyncio.gather(*work, return_exceptions=True)
            for write, result, wanted in zip(batch, results, expected, strict=True):
                outcome = _outcome(result)
                assert outcome in wanted if isinstance(wanted, range) else outcome == wanted, (write, result, wanted)
            await self.read_trimmed()

        self.run(all_at_once())

    @precondition(lambda self: self.names)
    @rule(at=which, back=st.integers(0, 30), beyond=st.booleans(), kinds=kinds_filters)
    def watch(self, at: int, back: int, beyond: bool, kinds: frozenset[str]) -> None:
        index = at % len(self.names)
        model = self.models[index]
        after = model.latest + 1 if beyond and back == 0 else max(0, model.latest - back)
        frames = session_frames(self.log, self.names[index], after, kinds, follow=True, idle_seconds=0)
        watcher = Watcher(index, kinds, frames, [after])
        self.watchers.append(watcher)
        self.run(self.pull_one(watcher))

    @precondition(lambda self: self.watchers)
    @rule(number=st.integers(0, 20), times=st.integers(1, 5))
    def pull(self, number: int, times: int) -> None:
        watcher = self.watchers[number % len(self.watchers)]
        for _ in range(times):
            if watcher in self.watchers:
                self.run(self.pull_one(watcher))

    @precondition(lambda self: self.watchers)
    @rule(number=st.integers(0, 20), again=st.booleans())
    def cut(self, number: int, again: bool) -> None:
        """The connection breaks; the client goes on from where it was."""
        watcher = self.watchers.pop(number % len(self.watchers))
        self.run(watcher.frames.aclose())
        if again:
            name = self.names[watcher.index]
            frames = session_frames(self.log, name, watcher.position[0], watcher.kinds, follow=True, idle_seconds=0)
            self.watchers.append(watcher._replace(frames=frames))

    @precondition(lambda self: self.names)
    @rule(at=which, batch=batches.filter(bool))
    def wake(self, at: int, batch: Batch) -> None:
        """Cursors that wait at the end are woken by what comes."""
        index = at % len(self.names)
        model = self.models[index]
        if not model.exists:
            return

        async def wake() -> None:
            async with contextlib.AsyncExitStack() as stack:
                cursors = [self.log.watch(self.names[index], model.latest) for _ in range(2)]
                for cursor in cursors:
                    await stack.enter_async_context(cursor)
                waiting = [asyncio.create_task(cursor.next(STEP_SECONDS / 2)) for cursor in cursors]
                await asyncio.sleep(0)
                first = model.latest + 1
                self.add(index, batch)
                await self.store.append(self.names[index], _events(batch), None)
                for frames in await asyncio.gather(*waiting):
                    assert frames is not None, "a cursor was not woken"
                    assert frames.first == first
                    self.compare(index, v1.EventFrame.FromString(frames.data), model.between(first, frames.last))
                # What is kept in memory begins here, or nearby: others join on either side of it.
                for after in range(max(model.oldest - 1, first - 3), model.latest):
                    async with self.log.watch(self.names[index], after) as joining:
                        frames = await joining.next(0)
                        assert frames is not None
                        assert frames.first == after + 1
                        found = v1.EventFrame.FromString(frames.data)
                        self.compare(index, found, model.between(after + 1, frames.last))

        self.groups += 1
        self.run(wake())

    @precondition(lambda self: self.names)
    @rule(at=which, back=st.integers(0, 30), kinds=kinds_filters)
    def read(self, at: int, back: int, kinds: frozenset[str]) -> None:
        index = at % len(self.names)
        self.run(self.read_history(index, max(0, self.models[index].latest - back), kinds))

    @precondition(lambda self: self.names)
    @rule(at=which)
    def delete(self, at: int) -> None:
        index = at % len(self.names)
        model, name = self.models[index], self.names[index]
        wanted = None if model.exists else NOT_FOUND

        async def delete() -> None:
            work = self.store.write(lambda tx: tx.sessions.delete(name), name)
            (result,) = await asyncio.gather(work, return_exceptions=True)
            assert _outcome(result) == wanted
            assert await self.store.sessions.get(name) is None
            assert await self.store.events.read(name, 0, 1 << 30) is None

        model.exists = False
        self.run(delete())

    @rule(seconds=st.integers(1, 100))
    def wait(self, seconds: int) -> None:
        self.clock.micros += seconds * 1_000_000

    @rule()
    def restart(self) -> None:
        self.run(self.close())
        self.run(self.open())

    # What is done, and what the model says about it.

    def prepare(self, write: Write) -> Coroutine[Any, Any, Any]:
        """Return the write itself, as things are before it."""
        name, other = self.names[write.target], self.names[write.other]
        model = self.models[write.target]
        fences = {
            "append": None,
            "fenced": Fence(model.turn_id, model.fence),
            "late fence": Fence(model.turn_id, model.fence - 1),
            "other turn": Fence("another", model.fence),
        }
        if write.how in fences:
            return self.store.append(name, _events(write.batch), fences[write.how])
        if write.how == "trim":
            since = self.since(write)
            return self.store.write(lambda tx: tx.trim(name, write.keep, since), name)
        turn_id = new_id()

        def unit(tx: Tx) -> int:
            if write.how == "acquire":
                session = tx.sessions.get(name)
                if session is None:
                    return tx.append(name, [], None)
                session.active_turn_id = turn_id
                tx.sessions.put(session)
                return tx.sessions.advance_fence(name)
            last = tx.append(name, _events(write.batch), None)
            if write.how == "both":
                last = tx.append(other, _events(write.batch), None)
            if write.how == "failing unit":
                raise UnitError
            return last

        if write.how == "acquire" and model.exists:
            model.turn_id = turn_id
        return self.store.write(unit, name, other)

    def apply(self, write: Write) -> Any:
        """Do the write to the model, and return what must come of it."""
        model, other = self.models[write.target], self.models[write.other]
        if not model.exists:
            return NOT_FOUND
        if write.how in ("late fence", "other turn"):
            return v1.ERROR_REASON_FENCED
        if write.how == "failing unit":
            return UnitError
        if write.how == "acquire":
            model.fence += 1
            return model.fence
        if write.how == "trim":
            # Others may share the transaction, and what it adds is kept; `read_trimmed` asks what it came to.
            model.farthest = max(model.farthest, *model.trimmed_to(write.keep, self.since(write)))
            return range(model.oldest, model.farthest + 1)
        if write.how == "both":
            if not other.exists:
                return NOT_FOUND
            self.add(write.target, write.batch)
            model, target = other, write.other
        else:
            target = write.target
        self.add(target, write.batch)
        return model.latest

    def add(self, index: int, batch: Batch) -> None:
        self.models[index].entries += [Entry(kind, text, self.clock.micros, self.groups) for kind, text in batch]

    def since(self, write: Write) -> int:
        return self.clock.micros - write.keep * 10_000_000 if write.other % 2 else 0

    async def read_trimmed(self) -> None:
        """Learn how far logs are trimmed, which the store may choose within bounds."""
        for name, model in zip(self.names, self.models, strict=True):
            session = await self.store.sessions.get(name)
            assert (session is not None) == model.exists
            if session is not None:
                assert model.oldest <= session.oldest_sequence <= model.farthest
                assert session.latest_sequence == model.latest
                model.oldest = model.farthest = session.oldest_sequence

    @precondition(lambda self: self.names)
    @rule(at=which, keep=st.integers(0, 12), age=st.sampled_from([0, 0, 1, 50, 300]))
    def trim(self, at: int, keep: int, age: int) -> None:
        """A trim alone: all goes that may, down to a chunk's border."""
        index = at % len(self.names)
        model, name = self.models[index], self.names[index]
        since = self.clock.micros - age * 1_000_000 if age else 0

        async def trim() -> None:
            work = self.store.write(lambda tx: tx.trim(name, keep, since), name)
            (result,) = await asyncio.gather(work, return_exceptions=True)
            if not model.exists:
                assert _outcome(result) == NOT_FOUND
                return
            assert result in model.trimmed_to(keep, since), (result, model.trimmed_to(keep, since))
            model.oldest = model.farthest = result  # type: ignore[assignment]

        self.run(trim())

    @precondition(lambda self: self.watchers)
    @rule(number=st.integers(0, 20), batch=batches.filter(bool))
    def fall_behind(self, number: int, batch: Batch) -> None:
        """What an open watcher has not read yet is trimmed."""
        watcher = self.watchers[number % len(self.watchers)]
        for _ in range(3):
            self.write([Write("append", watcher.index, watcher.index, batch, 0)])
        self.trim(watcher.index, 1, 0)
        self.run(self.pull_one(watcher))

    async def pull_one(self, watcher: Watcher) -> None:
        """Take a frame of a stream, or its error."""
        model = self.models[watcher.index]
        position = watcher.position[0]
        behind = 0 < position < model.oldest - 1
        try:
            frame = v1.EventFrame.FromString(await anext(watcher.frames))
        except KartaError as error:
            self.watchers.remove(watcher)
            if not model.exists:
                assert error.reason == NOT_FOUND
            elif position > model.latest:
                assert error.reason == v1.ERROR_REASON_SEQUENCE_OUT_OF_RANGE
            else:
                assert error.reason == v1.ERROR_REASON_EVENTS_TRIMMED
                assert behind, f"{position} was trimmed, and the log begins at {model.oldest}"
                assert error.metadata == {"after_sequence": str(position), "oldest_sequence": str(model.oldest)}
            return
        assert model.exists, "a deleted session is streamed"
        last = frame.latest_sequence
        assert position <= last <= model.latest
        if last == position:
            assert position == model.latest, f"nothing came behind {position}, and {model.latest} are there"
        first = position + 1 if position else _first(frame, model)
        self.compare(watcher.index, frame, model.between(first, last, watcher.kinds))
        watcher.position[0] = last

    async def read_history(self, index: int, after: int, kinds: frozenset[str]) -> None:
        """Read a log as it is: all of it comes, in order, and the stream ends."""
        model = self.models[index]
        frames = v1.EventFrame(latest_sequence=after)
        stream = session_frames(self.log, self.names[index], after, kinds, follow=False, idle_seconds=0)
        try:
            async for data in stream:
                frames.MergeFromString(data)
        except KartaError as error:
            trimmed = 0 < after < model.oldest - 1
            assert error.reason == (v1.ERROR_REASON_EVENTS_TRIMMED if model.exists and trimmed else NOT_FOUND)
            assert trimmed or not model.exists
            return
        assert model.exists
        assert frames.latest_sequence == model.latest
        first = after + 1 if after else _first(frames, model)
        self.compare(index, frames, model.between(first, model.latest, kinds))

    async def compare_all(self) -> None:
        for index in range(len(self.names)):
            await self.read_history(index, 0, frozenset())

    def compare(self, index: int, frame: v1.EventFrame, wanted: list[tuple[int, Entry]]) -> None:
        """Compare events with the list, and their bytes with what came before."""
        assert [event.sequence for event in frame.events] == [sequence for sequence, _ in wanted]
        for event, (sequence, entry) in zip(frame.events, wanted, strict=True):
            assert entry.is_like(event), f"{sequence} is {event}, and was written as {entry}"
            data = event.SerializeToString()
            assert self.stored.setdefault((index, sequence), data) == data


def _events(batch: Batch) -> list[v1.Event]:
    return [
        v1.Event(text=v1.TextDelta(text=text)) if kind == "text" else v1.Event(reasoning=v1.ReasoningDelta(text=text))
        for kind, text in batch
    ]


def _first(frame: v1.EventFrame, model: LogModel) -> int:
    """Return where a stream from the beginning begins: at the oldest event, or before, as long as other watchers
    keep it in memory."""
    return min(model.oldest, *(event.sequence for event in frame.events[:1]), model.oldest)


def _outcome(result: Any) -> Any:
    if isinstance(result, KartaError):
        return result.reason
    if isinstance(result, UnitError):
        return UnitError
    if isinstance(result, BaseException):
        raise result
    return result


@pytest.fixture(scope="module", autouse=True)
def _template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty database with its schema, to begin each example with."""
    LogMachine.template = tmp_path_factory.mktemp("template") / "karta.db"

    async def make() -> None:
        store = SqlStore(LogMachine.template)
        await store.open()
        await store.close()

    asyncio.run(make())


TestLog = LogMachine.TestCase
# Only a failure takes long: the shortest way to it is looked for.
TestLog.pytestmark = [pytest.mark.timeout(600)]
