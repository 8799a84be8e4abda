"""What the writer knows of recent sessions, and what it has yet to write.

Units read and change rows in memory; the end of a transaction writes each row
that changed once, with one statement a table. Nobody else writes, so what is
known of a session is kept from one transaction to the next.

The thread of the writer gives up the GIL with every statement, and a busy event
loop gives it back late: statements are what costs most.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import Commit, SessionKey
from karta_server.storage.sql import dialect, tables
from karta_server.storage.sql.chunks import chunks
from karta_server.storage.sql.session_state import InputRow, SessionRow, SessionState, TurnRow

_ROWS_A_STATEMENT: Final = 256
_KNOWN_SESSIONS: Final = 4_096
_KNOWN_BYTES: Final = 32 * 1024 * 1024

_SESSION_COLUMNS: Final = ", ".join(f"s.{name}" for name in SessionRow._fields)
_TURN_COLUMNS: Final = ", ".join(f"a.{name}" for name in TurnRow._fields)
# A join, and in this order: with IN, SQLite would go through all sessions. Nothing but placeholders is put in.
_LOAD: Final = f"""
WITH wanted (tenant_id, session_id) AS ({{values}})
SELECT {_SESSION_COLUMNS},
    (SELECT max(t.turn_id) FROM turns t WHERE t.tenant_id = s.tenant_id AND t.session_id = s.session_id),
    (SELECT max(i.turn_id) FROM inputs i WHERE i.tenant_id = s.tenant_id AND i.session_id = s.session_id),
    {_TURN_COLUMNS}
FROM wanted w
CROSS JOIN sessions s ON s.tenant_id = w.tenant_id AND s.session_id = w.session_id
LEFT JOIN turns a ON a.tenant_id = s.tenant_id AND a.session_id = s.session_id
    AND a.state IN ({", ".join(map(str, tables.ACTIVE))})
"""  # noqa: S608

RequestKey = tuple[str, str, str]


class RequestRow(NamedTuple):
    """A row of `requests`."""

    tenant_id: str
    principal: str
    request_id: str
    fingerprint: bytes
    response: bytes
    session_id: str
    create_time: int


class Cache:
    """All sessions. `begin` … `keep` or `undo` bracket a unit; `flush` and `committed` or `lost` a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[SessionKey, SessionState] = {}
        self._known_bytes = 0
        self._changed: dict[SessionKey, SessionState] = {}  # By this transaction.
        self._unwritten: dict[SessionKey, SessionState] = {}
        self._answers: dict[RequestKey, RequestRow] = {}
        self._unit: dict[SessionKey, SessionState] | None = None
        self._unit_answers: dict[RequestKey, RequestRow] = {}
        self._named: Sequence[SessionKey] = ()
        self._saved = False

    # A unit.

    def begin(self, sessions: Sequence[SessionKey]) -> None:
        """Begin a unit that changes these sessions."""
        self._unit, self._named = {}, sessions

    def keep(self) -> None:
        """End the unit with its changes."""
        unit = self._unit or {}
        self._known.update(unit)
        self._changed.update(unit)
        self._unwritten.update(unit)
        self._answers.update(self._unit_answers)
        self._end("RELEASE unit")

    def undo(self) -> None:
        """End the unit without its changes."""
        self._end("ROLLBACK TO unit", "RELEASE unit")

    def find(self, key: SessionKey) -> SessionState:
        """Return the session as it is now. Not to be changed."""
        if self._unit and (state := self._unit.get(key)):
            return state
        if key not in self._known:
            self.load([key])
        return self._known[key]

    def change(self, key: SessionKey) -> SessionState:
        """Return the session to be changed, whether it exists or not."""
        state = self.find(key)
        if self._unit is None:
            self._changed[key] = self._unwritten[key] = state
        elif key not in self._unit:
            state = self._unit[key] = state.copy()
        return state

    def find_existing(self, key: SessionKey) -> SessionState:
        """`find`, or raise KartaError SESSION_NOT_FOUND."""
        state = self.find(key)
        if not state.exists:
            raise KartaError(
                v1.ERROR_REASON_SESSION_NOT_FOUND,
                f"There is no session {key.session_id}. It was deleted, or belongs to somebody else.",
                session_id=key.session_id,
            )
        return state

    def change_existing(self, key: SessionKey) -> SessionState:
        """`change`, or raise KartaError SESSION_NOT_FOUND."""
        self.find_existing(key)
        return self.change(key)

    def find_input(self, tenant_id: str, input_request_id: str) -> InputRow | None:
        """Return an input request if it is known. One that this transaction changed is."""
        unit = self._unit or {}
        for key in chain(self._named, unit, self._changed):
            state = unit.get(key) or self._known.get(key)
            row = state.inputs.get(input_request_id) if state else None
            if row is not None and row.tenant_id == tenant_id:
                return row
        return None

    def find_answer(self, key: RequestKey) -> RequestRow | None:
        """Return the answer that this transaction gave to a request, if it did."""
        return self._unit_answers.get(key) or self._answers.get(key)

    def put_answer(self, row: RequestRow) -> None:
        """Insert or replace the answer to a request."""
        self._unit_answers[row[:3]] = row

    def expose(self) -> None:
        """Have all rows in the database that the unit can see; to be called before it is searched."""
        if self._unit or self._unit_answers:
            self.save()
            self._write((self._unit or {}).values(), self._unit_answers)
        else:
            self._write_kept()

    def save(self) -> None:
        """Allow the unit to be undone in the database; to be called before it changes rows there itself."""
        if self._unit is not None and not self._saved:
            self._write_kept()  # Or going back would take it along.
            self._connection.exec_driver_sql("SAVEPOINT unit")
            self._saved = True

    def _end(self, *statements: str) -> None:
        for statement in statements if self._saved else ():
            self._connection.exec_driver_sql(statement)
        self._unit, self._unit_answers, self._saved = None, {}, False

    # A transaction.

    def load(self, keys: Iterable[SessionKey]) -> None:
        """Read these sessions; those that do not exist are known not to."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        for start in range(0, len(missing), _ROWS_A_STATEMENT):
            self._load(missing[start : start + _ROWS_A_STATEMENT])

    def flush(self) -> list[Commit]:
        """Write what is not written; return what the transaction changed in each session."""
        self._write_kept()
        self._insert(tables.event_chunks, [chunk for state in self._changed.values() for chunk in chunks(state)])
        return [state.commit() for state in self._changed.values()]

    def committed(self) -> None:
        """Begin the next transaction, knowing what this one left."""
        for key, state in self._changed.items():
            state.settle()
            self._known_bytes -= state.size
            state.size = state.measure()
            self._known_bytes += state.size
            self._known[key] = self._known.pop(key)
        self._changed.clear()
        while len(self._known) > _KNOWN_SESSIONS or self._known_bytes > _KNOWN_BYTES:
            self._known_bytes -= self._known.pop(next(iter(self._known))).size

    def lost(self) -> None:
        """Begin the next transaction, knowing nothing: this one was rolled back."""
        self._known.clear()
        self._known_bytes = 0
        self._changed.clear()
        self._unwritten.clear()
        self._answers.clear()
        self._unit, self._unit_answers, self._saved = None, {}, False

    def _load(self, keys: Sequence[SessionKey]) -> None:
        values, parameters = dialect.values(keys)
        rows = self._connection.exec_driver_sql(_LOAD.format(values=values), parameters)
        found = {SessionKey(*row[:2]): row for row in rows}
        for key in keys:
            state = self._known[key] = _state(key, found.get(key))
            state.size = state.measure()
            self._known_bytes += state.size

    def _write_kept(self) -> None:
        self._write(self._unwritten.values(), self._answers)
        self._unwritten.clear()

    def _write(self, states: Iterable[SessionState], answers: dict[RequestKey, RequestRow]) -> None:
        """Write rows that differ from the database's."""
        states = tuple(states)
        for state in states:
            if state.stale_metadata:
                self._write_metadata(state)
        self._upsert(tables.sessions, [state.row for state in states if state.stale_row])
        self._upsert(tables.session_memories, [(*state.key, state.memory) for state in states if state.stale_memory])
        turns = [state.turns[turn_id] for state in states for turn_id in state.stale_turns]
        # A session's active turn comes behind the one that was active, or for a moment there were two.
        turns.sort(key=_is_active)
        self._upsert(tables.turns, turns)
        self._upsert(tables.inputs, [state.inputs[id_] for state in states for id_ in state.stale_inputs])
        self._upsert(tables.requests, list(answers.values()))
        answers.clear()
        for state in states:
            state.written()

    def _write_metadata(self, state: SessionState) -> None:
        self._connection.exec_driver_sql(
            "DELETE FROM session_metadata WHERE tenant_id = ? AND session_id = ?", state.key
        )
        self._insert(tables.session_metadata, [(*state.key, *entry) for entry in state.metadata.items()])

    def _upsert(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        for start in range(0, len(rows), _ROWS_A_STATEMENT):
            self._connection.exec_driver_sql(*dialect.upsert(table, rows[start : start + _ROWS_A_STATEMENT]))

    def _insert(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        for start in range(0, len(rows), _ROWS_A_STATEMENT):
            self._connection.exec_driver_sql(*dialect.insert(table, rows[start : start + _ROWS_A_STATEMENT]))


def _is_active(row: TurnRow) -> bool:
    return row.is_active


def _state(key: SessionKey, found: Sequence[Any] | None) -> SessionState:
    """Return the state that a row of _LOAD says."""
    if found is None:
        return SessionState(SessionRow(*key))
    columns = len(SessionRow._fields)
    last_turn_id, last_asked_turn_id, *active = found[columns:]
    state = SessionState(SessionRow(*found[:columns]), exists=True)
    state.last_turn_id, state.last_asked_turn_id = last_turn_id or "", last_asked_turn_id or ""
    if active[0] is not None:
        turn = TurnRow(*active)
        state.active, state.turns = turn.turn_id, {turn.turn_id: turn}
    return state
