"""Input requests: recorded before anyone is asked, answered once, first answer wins."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from karta import v1
from karta_server.core import checks, events
from karta_server.core.caller import Caller
from karta_server.core.participants import require_writer
from karta_server.core.requests import once
from karta_server.core.session_record import read_session
from karta_server.errors import KartaError
from karta_server.ids import new_id
from karta_server.storage.contract import Claim, Commit, Page, SessionKey, Store, Tx

_MAX_WATCHED = 10_000


def prepare_questions(claim: Claim, agent: str, batch: Sequence[v1.Event]) -> list[str]:
    """Complete the input requests of a batch of events and return their ids."""
    prepared = []
    for event in batch:
        if not event.HasField("input_required"):
            continue
        request = event.input_required.input_request
        request.tenant_id, request.session_id = claim.session
        request.turn_id = claim.turn_id
        request.input_request_id = new_id()
        request.state = v1.INPUT_STATE_PENDING
        request.agent = agent
        request.create_time.CopyFrom(events.now())
        prepared.append(request.input_request_id)
    return prepared


def ask(tx: Tx, claim: Claim, batch: Sequence[v1.Event], limit: int) -> None:
    """Record a batch's input requests, which `prepare_questions` completed; the turn waits from here on."""
    requests = [event.input_required.input_request for event in batch if event.HasField("input_required")]
    session = read_session(tx, claim.session)
    if session.pending_input_count + len(requests) > limit:
        raise KartaError(
            v1.ERROR_REASON_LIMIT_REACHED,
            f"The session has {session.pending_input_count} open input requests; the limit is {limit}.",
            resource="pending_inputs",
            limit=limit,
        )
    for request in requests:
        tx.inputs.put(request)
    session.pending_input_count += len(requests)
    tx.sessions.put(session)
    _set_turn_state(tx, claim.session, claim.turn_id, v1.TURN_STATE_INPUT_REQUIRED, f"waits for: {requests[-1].title}")


class Inputs:
    """The rules of InputService."""

    def __init__(self, store: Store, deliver: Callable[[v1.InputRequest], Awaitable[None]], limits: v1.Limits) -> None:
        self._store = store
        self._deliver = deliver
        self._limits = limits

    async def get(self, caller: Caller, request: v1.GetInputRequestRequest) -> v1.GetInputRequestResponse:
        """Return an input request."""
        tenant_id = checks.tenant(caller, request.tenant_id)
        checks.uuid("input_request_id", request.input_request_id)
        found = await self._store.inputs.get(tenant_id, request.input_request_id)
        if found is None:
            raise _not_found(request.input_request_id)
        return v1.GetInputRequestResponse(input_request=found)

    async def page(self, caller: Caller, request: v1.ListInputRequestsRequest) -> v1.ListInputRequestsResponse:
        """Return a page of input requests, newest first."""
        tenant_id = checks.tenant(caller, request.tenant_id)
        for state in request.states:
            checks.enum("states", v1.InputState, state)
        page = Page(checks.page_size(request.page_size, self._limits), request.page_token)
        states = list(request.states) or [v1.INPUT_STATE_PENDING]
        found, cursor = await self._store.inputs.page(tenant_id, request.session_id, request.turn_id, states, page)
        return v1.ListInputRequestsResponse(input_requests=found, next_page_token=cursor)

    async def respond(self, caller: Caller, request: v1.RespondToInputRequest) -> v1.RespondToInputResponse:
        """Record an answer and hand it to the harness that waits for it."""
        tenant_id = checks.tenant(caller, request.tenant_id)
        checks.request_id(request.request_id, self._limits)
        checks.uuid("input_request_id", request.input_request_id)
        checks.bounded("response", request.response.ByteSize(), self._limits.max_response_bytes)
        found = await self._store.inputs.get(tenant_id, request.input_request_id)
        if found is None:
            raise _not_found(request.input_request_id)
        check_response(found, request.response)
        won: list[bool] = []

        def act(tx: Tx) -> v1.RespondToInputResponse:
            won[:] = []
            answered, first = _answer(tx, tenant_id, caller, request)
            won[:] = [first]
            return v1.RespondToInputResponse(input_request=answered)

        response = await self._store.write(
            lambda tx: once(tx, caller, request, v1.RespondToInputResponse, lambda: act(tx)),
            SessionKey(tenant_id, found.session_id),
        )
        if any(won):
            await self._deliver(response.input_request)
        return response

    async def watch(
        self, tenant_id: str, session_id: str, heartbeat_seconds: float
    ) -> AsyncIterator[list[v1.InputRequest]]:
        """Yield what waits, then each change; an empty list when nothing happened for a while."""
        changed: dict[str, v1.InputRequest] = {}
        woken = asyncio.Event()

        def committed(commits: Sequence[Commit]) -> None:
            for commit in commits:
                if commit.session.tenant_id == tenant_id and session_id in ("", commit.session.session_id):
                    changed.update((request.input_request_id, request) for request in commit.inputs)
            if changed:
                woken.set()

        unsubscribe = self._store.subscribe(committed)
        try:
            async for pending in self._all_pending(tenant_id, session_id):
                yield pending
            while True:
                try:
                    async with asyncio.timeout(heartbeat_seconds):
                        await woken.wait()
                except TimeoutError:
                    pass
                woken.clear()
                batch = list(changed.values())
                changed.clear()
                if len(batch) > _MAX_WATCHED:
                    raise _too_slow()
                yield batch
        finally:
            unsubscribe()

    async def _all_pending(self, tenant_id: str, session_id: str) -> AsyncIterator[list[v1.InputRequest]]:
        cursor = ""
        while True:
            page = Page(self._limits.max_page_size, cursor)
            found, cursor = await self._store.inputs.page(tenant_id, session_id, "", [v1.INPUT_STATE_PENDING], page)
            yield found
            if not cursor:
                return


def check_response(request: v1.InputRequest, response: v1.InputResponse) -> None:
    """Refuse an answer that the request's options do not contain."""
    kind = response.WhichOneof("response")
    checks.required("response", kind)
    options = set(request.options)
    if kind == "allow":
        checks.enum("response.allow.scope", v1.AllowScope, response.allow.scope)
        if response.allow.HasField("updated_input"):
            checks.json_object("response.allow.updated_input", response.allow.updated_input)
            _require(request, v1.INPUT_OPTION_ALLOW_UPDATED in options, "response.allow.updated_input")
        session_wide = response.allow.scope == v1.ALLOW_SCOPE_SESSION
        option = v1.INPUT_OPTION_ALLOW_SESSION if session_wide else v1.INPUT_OPTION_ALLOW_ONCE
        _require(request, option in options, "response.allow.scope" if session_wide else "response.allow")
    elif kind == "deny":
        _require(request, v1.INPUT_OPTION_DENY in options, "response.deny")
    else:
        _require(request, v1.INPUT_OPTION_ANSWER in options, "response.answers")
        _check_answers(request, response.answers)


def _check_answers(request: v1.InputRequest, answers: v1.Answers) -> None:
    asked = {question.question: question for question in request.questions}
    for text in answers.questions:
        if text not in asked:
            raise checks.invalid("response.answers.questions", f"has no question {text[:200]!r}.", asked)
    for text, question in asked.items():
        field = f"response.answers.questions[{text[:200]!r}]"
        labels = list(answers.questions[text].labels) if text in answers.questions else []
        checks.required(field, [label for label in labels if label.strip()])
        if len(labels) > 1 and not question.multi_select:
            raise checks.invalid(field, "takes one label.")


def _answer(tx: Tx, tenant_id: str, caller: Caller, call: v1.RespondToInputRequest) -> tuple[v1.InputRequest, bool]:
    request = tx.inputs.get(tenant_id, call.input_request_id)
    if request is None:
        raise _not_found(call.input_request_id)
    key = SessionKey(tenant_id, request.session_id)
    session = read_session(tx, key)
    require_writer(session, call.participant_id)
    if request.state != v1.INPUT_STATE_PENDING:
        if request.state == v1.INPUT_STATE_ANSWERED and request.response == call.response:
            return request, False
        raise _already_resolved(request)
    request.state = v1.INPUT_STATE_ANSWERED
    request.response.CopyFrom(call.response)
    request.responder = call.participant_id or caller.principal
    request.resolve_time.CopyFrom(events.now())
    tx.inputs.put(request)
    session.pending_input_count -= 1
    tx.sessions.put(session)
    if not tx.inputs.pending(key, request.turn_id):
        _set_turn_state(tx, key, request.turn_id, v1.TURN_STATE_RUNNING, "")
    resolved = v1.InputResolved(
        input_request_id=request.input_request_id,
        state=request.state,
        response=request.response,
        responder=request.responder,
    )
    tx.append(key, [events.said(request.turn_id, call.participant_id, input_resolved=resolved)], None)
    return request, True


def _set_turn_state(tx: Tx, key: SessionKey, turn_id: str, state: v1.TurnState.ValueType, reason: str) -> None:
    turn = tx.turns.get(key, turn_id)
    if turn is not None:
        turn.state = state
        turn.state_reason = reason
        tx.turns.put(turn)


def _require(request: v1.InputRequest, condition: bool, field: str) -> None:
    if not condition:
        known = [v1.InputOption.Name(option) for option in request.options]
        raise checks.invalid(field, "is no answer that this input request takes.", known)


def _not_found(input_request_id: str) -> KartaError:
    return KartaError(
        v1.ERROR_REASON_INPUT_REQUEST_NOT_FOUND,
        f"There is no input request {input_request_id!r}; ListInputRequests shows those that wait.",
        input_request_id=input_request_id[:128],
    )


def _already_resolved(request: v1.InputRequest) -> KartaError:
    how = "answered" if request.state == v1.INPUT_STATE_ANSWERED else "given up, as its turn ended"
    by = f" by {request.responder}" if request.responder else ""
    return KartaError(
        v1.ERROR_REASON_INPUT_ALREADY_RESOLVED,
        f"The input request was {how}{by}.",
        input_request_id=request.input_request_id,
        state=v1.InputState.Name(request.state),
        responder=request.responder,
    )


def _too_slow() -> KartaError:
    return KartaError(
        v1.ERROR_REASON_LIMIT_REACHED,
        "The stream was read too slowly; watch anew to get all that waits.",
        resource="watched_inputs",
        limit=_MAX_WATCHED,
    )
