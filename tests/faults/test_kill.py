"""kill -9 of a serving karta-runtime at random moments, under load and while it starts."""

# Figures and seeds are printed: pytest shows them with -s, and when a test fails.
# ruff: noqa: T201

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import checker
import database
import grpc
from knowledge import Known, Sent
from load import Caller, Load
from serving import LINE

START_SECONDS = 30
GONE_SECONDS = 10


class Life:
    """One server process after the other on one project."""

    def __init__(self, project: Path, environment: dict[str, str]) -> None:
        self._environment = environment
        self._project = project
        self._log = project.parent / "serve.log"
        self.state = project / ".karta"
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def start(self) -> None:
        command = [sys.executable, "-m", "karta_server.cli", "dev-serve", str(self._project), "--harness", "scripted"]
        with self._log.open("a") as errors:
            self.process = subprocess.Popen(
                [*command, "--listen", "127.0.0.1:0"], env=self._environment, stdout=subprocess.PIPE, stderr=errors
            )

    async def serve(self) -> None:
        """Start, and wait until it serves."""
        self.start()
        assert self.process
        assert self.process.stdout
        line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), START_SECONDS)
        match = LINE.fullmatch(line.decode())
        assert match, f"{line!r}\n{self._log.read_text()[-3000:]}"
        assert json.loads((self.state / "server.json").read_text())["pid"] == self.process.pid
        self.address = match[1]

    def kill(self) -> None:
        """Kill it, and see that nothing of it is left."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(GONE_SECONDS)
        assert self.process.stdout
        self.process.stdout.close()
        self.process = None
        assert not (left := _processes(self._project)), f"left behind: {left}"


def _processes(project: Path) -> list[str]:
    """Living processes whose command names the project."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(project) in command and int(folder.name) != os.getpid():
                found.append(command)
    return found


@contextlib.contextmanager
def lives(project: Path, environment: dict[str, str]) -> Iterator[Life]:
    life = Life(project, environment)
    try:
        yield life
    finally:
        life.kill()


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Caller(channel)


class Clients:
    """What all clients know together, over all lives."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self.creations: list[Sent] = []
        self.new_creations: list[Sent] = []
        self.requests: Counter[str] = Counter()

    def count(self) -> None:
        """Count the requests that were sent in a life, and how many of them were answered in it."""
        sent_now = [*self.new_creations, *(sent for known in self.known.values() for sent in known.sent)]
        for sent in sent_now:
            if not sent.counted:
                sent.counted = True
                self.requests["sent"] += 1
                self.requests[sent.kind] += sent.answer is not None

    def events(self) -> int:
        return sum(len(known.seen) for known in self.known.values())


async def load_and_kill(life: Life, rng: random.Random, clients: Clients) -> None:
    """Keep the server busy, and kill it at a random moment behind the first event."""
    clients.new_creations = []
    async with connected(life.address) as caller:
        load = Load(rng, caller, clients.new_creations, clients.known)
        working = asyncio.create_task(load.run())
        try:
            busy = asyncio.create_task(load.busy.wait())
            await asyncio.wait({working, busy}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            busy.cancel()
            if working.done():
                await working
            assert load.busy.is_set(), "no event came"
            await asyncio.wait({working}, timeout=rng.uniform(0, 1.2))
            life.kill()
            await asyncio.wait_for(working, GONE_SECONDS)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    clients.creations += clients.new_creations
    for sent in clients.new_creations:
        if sent.answer is not None:
            session_id = sent.answer.session.session_id
            clients.known.setdefault(session_id, Known(session_id))


async def kill_while_it_starts(life: Life, rng: random.Random) -> None:
    """Kill the server before it serves, or just then: in the middle of its recovery as often as not."""
    life.start()
    assert life.process
    assert life.process.stdout
    serving = asyncio.create_task(asyncio.to_thread(life.process.stdout.readline))
    await asyncio.wait({serving}, timeout=rng.uniform(0.2, 1.5))
    life.process.send_signal(signal.SIGKILL)
    await serving
    life.kill()


async def check_life(
    caller: Caller, life: Life, deaths: list[database.Contents], clients: Clients, used: set[str]
) -> int:
    """Compare what the next server makes of a dead one's state with what clients know; return the interrupted."""
    dead = deaths[-1]
    now = database.examine(life.state / "karta.db")
    checker.check_unchanged(dead, now)
    for session_id in used & set(now.logs):
        assert await read_log(caller, session_id, len(dead.logs[session_id])) == dead.logs[session_id]
    await checker.finish_turns(caller, sorted(now.logs.keys() & used))
    now = database.examine(life.state / "karta.db")
    checker.check_unchanged(dead, now)
    interrupted = sum(checker.check_interrupted(each, now) for each in deaths)
    checker.check_ran(dead, now)
    for known in clients.known.values():
        checker.check_seen(now, known)
        if known.session_id in used and known.session_id in now.logs:
            checker.check_requests(now, known)
            checker.check_turns(now.logs[known.session_id])
    return interrupted


async def read_log(caller: Caller, session_id: str, count: int) -> list[bytes]:
    """Return the first events of a log as a new client reads them."""
    reader = Known(session_id)
    expected = 1
    for frame in await caller.log(session_id):
        expected = (reader.see(frame, expected) or expected - 1) + 1
    return list(reader.seen.values())[:count]


async def repeat(caller: Caller, clients: Clients, used: set[str]) -> None:
    """Send again what the dead server may or may not have done, and look at what it comes to."""
    # With a session go the answers that tell of it: asked for again, it would be made anew.
    gone = {session_id for session_id, known in clients.known.items() if known.deleting}
    creations = [
        sent for sent in clients.new_creations if sent.answer is None or sent.answer.session.session_id not in gone
    ]
    await checker.repeat_requests(caller, creations)
    await checker.check_creations(caller, creations)
    living = [clients.known[session_id] for session_id in used if not clients.known[session_id].deleting]
    deleting = [clients.known[session_id] for session_id in used if clients.known[session_id].deleting]
    for known in living:
        await checker.repeat_requests(caller, known.sent)
    for known in deleting:
        await checker.repeat_requests(caller, [sent for sent in known.sent if sent.kind == "delete"])
    await checker.finish_turns(caller, [known.session_id for known in living])


async def test_killed_at_random_moments_it_loses_nothing_that_a_client_saw(
    project: Path, environment: dict[str, str], kills: int, seed: int
) -> None:
    """The fault: kill -9 under load, and now and then while it starts. What is proved, after each: every event
    that any client saw is in the log with the same bytes; sequences are 1..n; one active turn a session, in
    their order; what ran is INTERRUPTED, what waited runs; acknowledged requests are there exactly once, and
    repeated ones get their first answer; the file is sound; no process is left."""
    print(f"\nPYTEST_KILLS={kills} PYTEST_SEED={seed}")
    rng = random.Random(seed)
    (project / "karta.jsonc").write_text('{"limits": {"max_running_turns": 4}}')
    clients = Clients()
    interrupted = starts = 0
    with lives(project, environment) as life:
        await life.serve()
        for number in range(1, kills + 1):
            await load_and_kill(life, rng, clients)
            used = {session_id for session_id, known in clients.known.items() if known.sent}
            clients.count()
            deaths = [database.examine(database.copy(life.state, project.parent / f"dead-{number}"))]
            for known in clients.known.values():
                checker.check_seen(deaths[0], known)
            if rng.random() < 0.2:
                starts += 1
                await kill_while_it_starts(life, rng)
                deaths.append(database.examine(database.copy(life.state, project.parent / f"dead-{number}-start")))
                checker.check_unchanged(*deaths)
            await life.serve()
            async with connected(life.address) as caller:
                ended = await check_life(caller, life, deaths, clients, used)
                await repeat(caller, clients, used)
            settle(life, clients, used)
            interrupted += ended
            seen, sessions = clients.events(), len(deaths[0].logs)
            print(f"kill {number}: {seen} events seen, {sessions} sessions, {ended} turns interrupted")
    print(f"{kills} kills under load, {starts} in a start: {interrupted} turns interrupted, nothing lost")
    print(f"requests, and answers to them by kind: {dict(clients.requests)}")
    assert clients.events() > 100 * kills, "the load was none"
    assert interrupted > kills / 2, "the kills came when nothing ran"


def settle(life: Life, clients: Clients, used: set[str]) -> None:
    """After everything was sent again: all of it is there exactly once. Then forget the requests, not the events."""
    now = database.examine(life.state / "karta.db")
    for session_id in used:
        known = clients.known[session_id]
        checker.check_requests(now, known)
        if not known.deleting:
            checker.check_turns(now.logs[session_id])
            for sequence, data in enumerate(now.logs[session_id], 1):
                known.seen[sequence] = data
        known.sent = [sent for sent in known.sent if sent.kind == "delete"]
