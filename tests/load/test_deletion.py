"""A deleted session is gone: from every answer, from the database file, and from the server's memory."""

# Figures and seeds are printed: pytest shows them with -s, and when a test fails.
# ruff: noqa: T201

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from launched import Launched, launched
from server_api import Api, Refused, script

from karta import v1

SECRET = "xyzzy-plugh-38271"
SESSIONS = 12
CYCLES = 7
TEXT_BYTES = 60_000
NOT_FOUND = grpc.StatusCode.NOT_FOUND
# Of a session with a watcher and a warm harness; the test sees that they are there before it deletes.
OF_SESSIONS = (
    "karta_server.core.session_log._Topic",
    "karta_server.core.session_log.Cursor",
    "karta_server.harness.scripted.ScriptedSession",
    "karta_server.harness.supervisor._Warm",
)
OF_TURNS = ("karta_server.core.active_turn.ActiveTurn",)
# SQLite's rollback space, its checkpoints and pages that are in use by halves.
FILE_SLACK = 1.3
CYCLE_KIB = SESSIONS * TEXT_BYTES / 1024
GONE_SECONDS = 5


@asynccontextmanager
async def served(project: Path, environment: dict[str, str]) -> AsyncIterator[tuple[Launched, Api]]:
    with launched(project, environment) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield server, Api(channel)


class Made(NamedTuple):
    session: v1.Session
    turn: v1.Turn
    input_request: v1.InputRequest


async def make(api: Api, number: int, *, request_ids: bool = True) -> Made:
    """Make a session with a finished turn, an answered input request, and a large log, all with the secret."""
    session = await api.create(title=SECRET, metadata={"number": str(number), "secret": SECRET})
    asks = script(
        [{"tool": "Bash", "input": {"command": SECRET}}], [{"text": f"{SECRET} " + "x" * TEXT_BYTES + " the end"}]
    )
    turn = await api.start(session, asks, request_id=f"{session.session_id}-1" if request_ids else "")
    assert (await api.wait(turn)).state == v1.TURN_STATE_INPUT_REQUIRED
    (pending,) = await api.pending(session)
    await api.respond(pending, allow=v1.Allow())
    assert (await api.wait(turn)).state == v1.TURN_STATE_COMPLETED
    return Made(session, turn, pending)


async def delete(api: Api, session: v1.Session) -> None:
    await api.sessions.DeleteSession(v1.DeleteSessionRequest(session_id=session.session_id))


def rows_with(path: Path, text: str) -> dict[str, int]:
    """Return how many rows of each table hold a text."""
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {}
        for table in tables:
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            values = [
                [value if isinstance(value, bytes) else str(value).encode() for value in row if value is not None]
                for row in rows
            ]
            found[table] = sum(any(text.encode() in value for value in row) for row in values)
    return {table: count for table, count in found.items() if count}


def used_kib(path: Path) -> int:
    """Return how much of the database holds something; what is free is used again."""
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * size // 1024


async def test_nothing_of_it_can_be_read(project: Path, environment: dict[str, str]) -> None:
    """The fault: a deleted session that stays readable (defect 10). What is proved: no call gives anything of it,
    who watches hears that it is gone, and a restart does not bring it back."""
    async with served(project, environment) as (_, api):
        made = await make(api, 0)
        session_id = made.session.session_id
        watching = api.sessions.WatchSession(v1.WatchSessionRequest(session_id=session_id, follow=True))
        await watching.read()
        await delete(api, made.session)
        with Refused(NOT_FOUND, "SESSION_NOT_FOUND"):
            while True:
                assert await watching.read() is not grpc.aio.EOF
        await check_gone(api, made)
    async with served(project, environment) as (_, api):
        await check_gone(api, made)


async def check_gone(api: Api, made: Made) -> None:
    session_id, turn_id = made.session.session_id, made.turn.turn_id
    with Refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        await api.sessions.GetSession(v1.GetSessionRequest(session_id=session_id))
    with Refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        await api.events(made.session)
    with Refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        await api.turns.ListTurns(v1.ListTurnsRequest(session_id=session_id))
    with Refused(NOT_FOUND, "TURN_NOT_FOUND"):
        await api.get(made.turn)
    with Refused(NOT_FOUND, "TURN_NOT_FOUND"):
        async for _ in api.turns.WatchTurn(v1.WatchTurnRequest(session_id=session_id, turn_id=turn_id)):
            pass
    with Refused(NOT_FOUND, "INPUT_REQUEST_NOT_FOUND"):
        asked = v1.GetInputRequestRequest(input_request_id=made.input_request.input_request_id)
        await api.inputs.GetInputRequest(asked)
    assert not (await api.sessions.ListSessions(v1.ListSessionsRequest(query=SECRET))).sessions
    assert not (await api.inputs.ListInputRequests(v1.ListInputRequestsRequest())).input_requests


async def test_no_row_holds_anything_of_it(project: Path, environment: dict[str, str]) -> None:
    """The fault: what was said stays in the database behind the answers. What is proved: no row of any table holds
    it, answers to request_ids, which are kept for a day, included."""
    path = project / ".karta" / "karta.db"
    async with served(project, environment) as (_, api):
        made = await make(api, 0)
        assert {"sessions", "turns", "inputs", "event_chunks", "requests"} <= set(rows_with(path, SECRET))
        await delete(api, made.session)
        assert rows_with(path, SECRET) == {}


async def counts_without(server: Launched, names: tuple[str, ...]) -> dict[str, float]:
    """Return the counts once these objects are gone: a call may end a moment after its client has heard so."""
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        found = server.ask("counts")
        left = {name: found[name] for name in names if found.get(name)}
        if not left:
            return found
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("request_ids", [False, True])
async def test_the_file_and_the_memory_do_not_grow(
    project: Path, environment: dict[str, str], request_ids: bool
) -> None:
    """The fault: memory and disk that never shrink (defect 10). What is proved: over cycles of making and deleting
    sessions with logs, watchers and warm harnesses, the file stays as large as after the first ones, and of the
    sessions' objects none is left."""
    state = project / ".karta"
    sizes, used = [], []
    async with served(project, environment) as (server, api):
        before = server.ask("counts")
        for cycle in range(CYCLES):
            made = [await make(api, number, request_ids=request_ids) for number in range(SESSIONS)]
            watches = [
                api.sessions.WatchSession(v1.WatchSessionRequest(session_id=each.session.session_id, follow=True))
                for each in made
            ]
            for watch in watches:
                await watch.read()
            alive = server.ask("counts")
            for name in OF_SESSIONS:
                assert alive.get(name, 0) >= SESSIONS, f"{name} is no name of what a session has in memory"
            for each, watch in zip(made, watches, strict=True):
                await delete(api, each.session)
                with Refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                    while True:
                        await watch.read()
            used.append(used_kib(state / "karta.db"))
            sizes.append(sum(file.stat().st_size for file in state.glob("karta.db*")))
            after = await counts_without(server, (*OF_SESSIONS, *OF_TURNS))
            if cycle == 1:
                settled = sum(after.values())
    print(f"\nin use after each cycle, KiB: {used}")
    print(f"file and WAL after each cycle, KiB: {[size // 1024 for size in sizes]}")
    print(f"objects: {sum(before.values())} before, {settled} after two cycles, {sum(after.values())} after {CYCLES}")
    assert used[-1] <= used[1] + CYCLE_KIB / 4, used
    assert max(sizes[2:]) <= max(sizes[:2]) * FILE_SLACK, sizes
    assert sum(after.values()) < settled * 1.05, "objects stay"
