"""The database file, read with a connection of the test's own, row by row."""

import shutil
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import wire

from karta import v1

ACTIVE = (v1.TURN_STATE_RUNNING, v1.TURN_STATE_INPUT_REQUIRED)
_OF_SESSIONS = ("turns", "inputs", "event_chunks", "session_metadata", "session_memories", "requests")


class Contents(NamedTuple):
    """What a database file holds."""

    logs: dict[str, list[bytes]]
    """The events of every session."""
    turns: dict[str, v1.Turn]


def copy(state: Path, folder: Path) -> Path:
    """Copy the database of a dead server: looking at it in its place would mend it."""
    folder.mkdir()
    for name in ("karta.db", "karta.db-wal"):
        if (state / name).exists():
            shutil.copyfile(state / name, folder / name)
    return folder / "karta.db"


def examine(path: Path) -> Contents:
    """Read everything; fails when the file is not sound."""
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN")  # One moment, while the server goes on.
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        sessions = dict(_rows(connection, "SELECT session_id, latest_sequence FROM sessions"))
        for table in _OF_SESSIONS:
            rows = _rows(connection, f"SELECT DISTINCT session_id FROM {table}")
            assert {session for (session,) in rows if session} <= set(sessions), (
                f"{table} has rows of sessions that are gone"
            )
        twice = _rows(
            connection,
            f"SELECT session_id, count(*) FROM turns WHERE state IN {ACTIVE} GROUP BY 1 HAVING count(*) > 1",
        )
        assert not twice, f"sessions have more than one active turn: {twice}"
        logs = _logs(connection, sessions)
        rows = _rows(connection, "SELECT state, body FROM turns")
    turns = {turn.turn_id: turn for turn in (v1.Turn.FromString(body) for _, body in rows)}
    assert [state for state, _ in rows] == [turn.state for turn in turns.values()], "a turn's column and body differ"
    return Contents(logs, turns)


def _logs(connection: sqlite3.Connection, sessions: dict[str, int]) -> dict[str, list[bytes]]:
    logs: dict[str, list[bytes]] = defaultdict(list)
    chunks = _rows(
        connection,
        "SELECT session_id, first_sequence, last_sequence, frames FROM event_chunks ORDER BY session_id, last_sequence",
    )
    for session, first, last, frames in chunks:
        log = logs[session]
        assert first == len(log) + 1, f"{session}: a chunk begins at {first}, the one before ends at {len(log)}"
        log += wire.split(frames)
        assert len(log) == last, f"{session}: a chunk says that it ends at {last}, and ends at {len(log)}"
    for session, latest in sessions.items():
        assert len(logs[session]) == latest, f"{session}: its row says {latest}, its log has {len(logs[session])}"
        for sequence, data in enumerate(logs[session], 1):
            event = wire.event(data)
            assert (event.sequence, event.session_id) == (sequence, session), f"{session}: {sequence} holds {event}"
    return dict(logs)


def _rows(connection: sqlite3.Connection, statement: str) -> list[Any]:
    return connection.execute(statement).fetchall()
