"""The checker of test_kill can fail: it finds each kind of damage."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import checker
import database
import pytest
from knowledge import Known

from karta import v1
from karta_server.ids import new_id
from karta_server.storage.contract import SessionKey
from karta_server.storage.sql.store import SqlStore

KEY = SessionKey("default", new_id())
DAMAGES = {
    "a chunk is lost": "DELETE FROM event_chunks WHERE first_sequence = 2",
    "the end is lost": "DELETE FROM event_chunks WHERE first_sequence = 3",
    "a chunk is there twice": "INSERT INTO event_chunks (tenant_id, session_id, last_sequence, first_sequence, "
    "create_time, frames) SELECT tenant_id, session_id, 9, 4, create_time, frames FROM event_chunks "
    "WHERE first_sequence = 3",
    "an event is another": "UPDATE event_chunks SET frames = (SELECT frames FROM event_chunks WHERE first_sequence = 1)"
    " WHERE first_sequence = 2",
    "a log is nobody's": "DELETE FROM sessions",
    "its end is rolled back": "DELETE FROM event_chunks WHERE first_sequence = 3;"
    "UPDATE sessions SET latest_sequence = 2",
    "a byte changed": "UPDATE event_chunks SET frames = CAST(replace(frames, 'b', 'x') AS BLOB)",
}


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A database with a session of three events, in a chunk each."""
    store = SqlStore(tmp_path / "karta.db")
    await store.open()
    session = v1.Session(tenant_id=KEY.tenant_id, session_id=KEY.session_id, state=v1.SESSION_STATE_ACTIVE)
    await store.write(lambda tx: tx.sessions.put(session), KEY)
    for text in "abc":
        await store.append(KEY, [v1.Event(text=v1.TextDelta(text=text * 9))], None)
    await store.close()
    return tmp_path / "karta.db"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(path: Path, damage: str) -> None:
    contents = database.examine(path)
    known = Known(KEY.session_id, seen=dict(enumerate(contents.logs[KEY.session_id], 1)))
    checker.check_seen(contents, known)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(DAMAGES[damage])
    with pytest.raises(AssertionError):
        checker.check_seen(database.examine(path), known)


def finished(turn_id: str) -> v1.Event:
    return v1.Event(turn_id=turn_id, turn_finished=v1.TurnFinished(state=v1.TURN_STATE_COMPLETED))


def started(turn_id: str) -> v1.Event:
    return v1.Event(turn_id=turn_id, turn_started=v1.TurnStarted())


def said(turn_id: str) -> v1.Event:
    return v1.Event(turn_id=turn_id, message_received=v1.MessageReceived())


GOOD = [said("a"), started("a"), said("b"), finished("a"), started("b"), finished("b")]
BAD: dict[str, Callable[[], list[v1.Event]]] = {
    "two run at once": lambda: [said("a"), started("a"), said("b"), started("b")],
    "out of order": lambda: [said("a"), said("b"), started("b"), finished("b"), started("a")],
    "it ends twice": lambda: [*GOOD, finished("b")],
    "it goes on behind its end": lambda: [*GOOD, v1.Event(turn_id="a", text=v1.TextDelta(text="late"))],
    "accepted twice": lambda: [said("a"), said("a")],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_turns_are_found(case: str) -> None:
    checker.check_turns([event.SerializeToString() for event in GOOD])
    with pytest.raises(AssertionError):
        checker.check_turns([event.SerializeToString() for event in BAD[case]()])
