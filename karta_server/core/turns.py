"""Turns as their callers see them: starting, reading, waiting, cancelling."""

from collections.abc import AsyncGenerator

from karta import v1
from karta_server.core import checks, ledger
from karta_server.core.agents import Agents, KnownAgents
from karta_server.core.caller import Caller
from karta_server.core.participants import require_writer
from karta_server.core.requests import once
from karta_server.core.session_log import SessionLog
from karta_server.core.session_record import read_session, session_not_found
from karta_server.core.turn_runner import TurnRunner, cancelled
from karta_server.errors import KartaError
from karta_server.ids import new_id
from karta_server.storage.contract import Page, SessionKey, Store, Tx

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
        self._runner.require_open()
        session = await self._store.sessions.get(key)
        if session is None:
            raise session_not_found(key)
        known = await self._agents.known(session.harness, request.agent, session.agent)
        reserved = self._runner.reserve()
        started: list[ledger.Started] = []

        def act(tx: Tx) -> v1.StartTurnResponse:
            started[:] = []
            turn, begun = self._admit(tx, caller, request, key, known, acquire=reserved)
            started.extend(begun)
            return v1.StartTurnResponse(turn=turn)

        try:
            response = await self._store.write(
                lambda tx: once(tx, caller, request, v1.StartTurnResponse, lambda: act(tx)), key
            )
        finally:
            self._after_start(started, reserved)
        return response.turn

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
        async for event in self._changes(key, turn, timeout_seconds):
            if event.HasField("turn_finished") or event.HasField("input_required"):
                turn = await self.get(key, turn_id)
                if turn.state in WAITING:
                    return turn
        raise KartaError(
            v1.ERROR_REASON_WAIT_TIMEOUT,
            f"The turn was not done after {timeout_seconds:g} s; it goes on, wait again or watch it.",
        )

    async def cancel(self, caller: Caller, request: v1.CancelTurnRequest) -> v1.Turn:
        """Stop a turn and return it when it is terminal."""
        key = SessionKey(checks.tenant(caller, request.tenant_id), request.session_id)
        checks.request_id(request.request_id, self._limits)
        checks.text("reason", request.reason, 512)
        await self.get(key, request.turn_id)
        reason = f"Cancelled by {request.participant_id or caller.principal}"
        reason += f": {request.reason}" if request.reason else "."

        def act(tx: Tx) -> v1.CancelTurnResponse:
            require_writer(read_session(tx, key), request.participant_id)
            turn = ledger.read_turn(tx, key, request.turn_id)
            if turn.state == v1.TURN_STATE_QUEUED:
                turn = ledger.withdraw(tx, key, request.turn_id, reason)
            return v1.CancelTurnResponse(turn=turn)

        response = await self._store.write(
            lambda tx: once(tx, caller, request, v1.CancelTurnResponse, lambda: act(tx)), key
        )
        if response.turn.state not in ledger.TERMINAL:
            await self._runner.stop(key, request.turn_id, cancelled(reason))
        return await self.get(key, request.turn_id)

    def _check_start(self, request: v1.StartTurnRequest) -> None:
        checks.request_id(request.request_id, self._limits)
        checks.uuid("session_id", request.session_id)
        checks.message("message", request.message, self._limits)
        checks.text("agent", request.agent, 256)
        checks.enum("busy_policy", v1.BusyPolicy, request.busy_policy)

    def _admit(
        self,
        tx: Tx,
        caller: Caller,
        request: v1.StartTurnRequest,
        key: SessionKey,
        known: KnownAgents,
        *,
        acquire: bool,
    ) -> tuple[v1.Turn, list[ledger.Started]]:
        session = read_session(tx, key)
        participant = require_writer(session, request.participant_id)
        known.require(request.agent)
        turn = v1.Turn(
            tenant_id=key.tenant_id,
            session_id=key.session_id,
            turn_id=new_id(),
            agent=request.agent,
            harness=session.harness,
            participant_id=request.participant_id,
            message=request.message,
            busy_policy=request.busy_policy or v1.BUSY_POLICY_QUEUE,
            traceparent=caller.traceparent,
        )
        free = not session.active_turn_id and not session.queued_turn_count
        display_name = participant.display_name if participant else ""
        ledger.admit(tx, session, turn, display_name, self._limits.max_queued_turns)
        if free and acquire:
            started = ledger.acquire(tx, session, turn, self._runner.owner, self._agents.default_agent)
            return started.turn, [started]
        ledger.report_queued(tx, session, turn)
        return turn, []

    def _after_start(self, started: list[ledger.Started], reserved: bool) -> None:
        for turn in started:
            self._runner.launch(turn)
        if reserved and not started:
            self._runner.release()
        if not reserved:
            self._runner.queued()

    async def _changes(self, key: SessionKey, turn: v1.Turn, timeout_seconds: float) -> AsyncGenerator[v1.Event, None]:
        """Yield the turn's events from its beginning until the time is over."""
        async with self._log.watch(key, turn.first_sequence) as cursor:
            while frames := await cursor.next(timeout_seconds):
                for event in v1.EventFrame.FromString(frames.data).events:
                    if event.turn_id == turn.turn_id:
                        yield event
