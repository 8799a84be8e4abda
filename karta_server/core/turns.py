"""Turns as their callers see them: starting, reading, waiting, cancelling."""

import asyncio

from karta import v1
from karta_server.core import checks, ledger
from karta_server.core.agents import Agents, KnownAgents
from karta_server.core.caller import Caller
from karta_server.core.participants import require_writer
from karta_server.core.requests import answered, once
from karta_server.core.session_log import Cursor, SessionLog
from karta_server.core.session_record import read_session, session_not_found
from karta_server.core.turn_runner import TurnRunner, cancelled
from karta_server.errors import KartaError
from karta_server.ids import new_id
from karta_server.storage.contract import Page, SessionKey, Store, Tx

# A quiet log is looked at anew this often; a change wakes the waiter at once.
_LOOK_SECONDS = 60.0

WAITING = ledger.TERMINAL | {v1.TURN_STATE_INPUT_REQUIRED}


class Turns:
    """The rules of TurnService."""

    def __init__(self, store: Store, log: SessionLog, agents: Agents, runner: TurnRunner, limits: v1.Limits) -> None:
        self._store = store
        self._log = log
        self._agents = agents
        self._runner = runner
        self._limits = limits

    async def start(self, caller: Caller, request: v1.StartTurnRequest) -> v1.Turn:
        """Accept a turn; it runs at once when its session and a place are free."""
        key = SessionKey(checks.tenant(caller, request.tenant_id), request.session_id)
        self._check_start(request)
        if (known := await answered(self._store, caller, request, v1.StartTurnResponse)) is not None:
            return known.turn
        self._runner.require_open()
        session = await self._store.sessions.get(key)
        if session is None:
            raise session_not_found(key)
        agents = await self._agents.known(session.harness, request.agent, session.agent)

        def unit(tx: Tx, may_acquire: bool) -> tuple[v1.StartTurnResponse, ledger.Started | None]:
            started: list[ledger.Started] = []

            def act() -> v1.StartTurnResponse:
                admitted = self._admit(tx, caller, request, key, agents)
                if may_acquire and not admitted.ahead:
                    started.append(self._acquire(tx, admitted))
                else:
                    ledger.queue(tx, admitted)
                return v1.StartTurnResponse(turn=admitted.turn)

            response = once(tx, caller, request, v1.StartTurnResponse, act)
            return response, started[0] if started else None

        return (await self._runner.write(unit, key)).turn

    async def get(self, key: SessionKey, turn_id: str) -> v1.Turn:
        """Return a turn."""
        checks.uuid("session_id", key.session_id)
        checks.uuid("turn_id", turn_id)
        turn = await self._store.turns.get(key, turn_id)
        if turn is None:
            raise ledger.turn_not_found(key, turn_id)
        return turn

    async def page(self, caller: Caller, request: v1.ListTurnsRequest) -> v1.ListTurnsResponse:
        """Return a page of a session's turns, newest first."""
        key = SessionKey(checks.tenant(caller, request.tenant_id), request.session_id)
        checks.uuid("session_id", request.session_id)
        for state in request.states:
            checks.enum("states", v1.TurnState, state)
        if await self._store.sessions.get(key) is None:
            raise session_not_found(key)
        page = Page(checks.page_size(request.page_size, self._limits), request.page_token)
        turns, cursor = await self._store.turns.page(key, list(request.states), page)
        return v1.ListTurnsResponse(turns=turns, next_page_token=cursor)

    async def wait(self, key: SessionKey, turn_id: str, timeout_seconds: float) -> v1.Turn:
        """Return the turn when it is terminal or waits for input. Raises WAIT_TIMEOUT."""
        turn = await self.get(key, turn_id)
        if turn.state in WAITING:
            return turn
        async with self._log.watch(key, turn.first_sequence) as cursor:
            return await self._wait(cursor, key, turn, timeout_seconds)

    async def send(self, caller: Caller, request: v1.StartTurnRequest, timeout_seconds: float) -> v1.Turn:
        """`start` and `wait`, reading from the store only what has to be read."""
        key = SessionKey(checks.tenant(caller, request.tenant_id), request.session_id)
        self._check_start(request)
        # The cursor is there before the turn, so that the turn's events need not be read from the store.
        async with self._log.watch(key, 0) as cursor:
            turn = await self.start(caller, request)
            cursor.position = turn.first_sequence
            return await self._wait(cursor, key, turn, timeout_seconds)

    async def _wait(self, cursor: Cursor, key: SessionKey, turn: v1.Turn, timeout_seconds: float) -> v1.Turn:
        try:
            async with asyncio.timeout(timeout_seconds):
                while turn.state not in WAITING:
                    if await self._may_have_changed(cursor, turn.turn_id):
                        turn = await self.get(key, turn.turn_id)
                return turn
        except TimeoutError:
            raise KartaError(
                v1.ERROR_REASON_WAIT_TIMEOUT,
                f"The turn was not done after {timeout_seconds:g} s; it goes on, wait again or watch it.",
            ) from None

    async def cancel(self, caller: Caller, request: v1.CancelTurnRequest) -> v1.Turn:
        """Stop a turn and return it when it is terminal."""
        key = SessionKey(checks.tenant(caller, request.tenant_id), request.session_id)
        checks.request_id(request.request_id, self._limits)
        checks.text("reason", request.reason, 512)
        if (known := await answered(self._store, caller, request, v1.CancelTurnResponse)) is None:
            await self.get(key, request.turn_id)
        elif known.turn.state in ledger.TERMINAL:
            return known.turn
        reason = f"Cancelled by {request.actor or caller.principal}"
        reason += f": {request.reason}" if request.reason else "."

        def act(tx: Tx) -> v1.CancelTurnResponse:
            session = read_session(tx, key)
            require_writer(session, request.actor)
            turn = ledger.read_turn(tx, key, request.turn_id)
            if turn.state == v1.TURN_STATE_QUEUED:
                turn = ledger.withdraw(tx, session, turn, reason)
            return v1.CancelTurnResponse(turn=turn)

        response = await self._store.write(
            lambda tx: once(tx, caller, request, v1.CancelTurnResponse, lambda: act(tx)), key
        )
        if response.turn.state in ledger.TERMINAL:
            return response.turn
        await self._runner.stop(key, request.turn_id, cancelled(reason))
        return await self.get(key, request.turn_id)

    def _check_start(self, request: v1.StartTurnRequest) -> None:
        checks.request_id(request.request_id, self._limits)
        checks.uuid("session_id", request.session_id)
        checks.message("message", request.message, self._limits)
        checks.text("agent", request.agent, 256)
        checks.enum("busy_policy", v1.BusyPolicy, request.busy_policy)

    def _acquire(self, tx: Tx, admitted: ledger.Admitted) -> ledger.Started:
        owner, default_agent = self._runner.owner, self._agents.default_agent
        return ledger.acquire(tx, admitted.session, admitted.turn, owner, default_agent)

    def _admit(
        self, tx: Tx, caller: Caller, request: v1.StartTurnRequest, key: SessionKey, agents: KnownAgents
    ) -> ledger.Admitted:
        session = read_session(tx, key)
        participant = require_writer(session, request.participant_id)
        agents.require(request.agent)
        turn = v1.Turn(
            tenant_id=key.tenant_id,
            session_id=key.session_id,
            turn_id=new_id(),
            agent=request.agent,
            harness=session.harness,
            participant_id=request.participant_id,
            display_name=participant.display_name if participant else "",
            message=request.message,
            busy_policy=request.busy_policy or v1.BUSY_POLICY_QUEUE,
            traceparent=caller.traceparent,
        )
        return ledger.admit(tx, session, turn, self._limits.max_queued_turns)

    async def _may_have_changed(self, cursor: Cursor, turn_id: str) -> bool:
        """Read on in the log; return whether the turn ended there, or began to wait."""
        frames = await cursor.next(_LOOK_SECONDS)
        if frames is None or frames.turn_id not in ("", turn_id):
            return False
        return any(
            event.turn_id == turn_id and event.WhichOneof("kind") in ("turn_finished", "input_required")
            for event in v1.EventFrame.FromString(frames.data).events
        )
