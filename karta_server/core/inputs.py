"""Input requests: recorded before anyone is asked, answered once, first answer wins."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from karta import v1
from karta_server.core import checks, events
from karta_server.core.caller import Caller
from karta_server.core.participants import require_writer
from karta_server.core.requests import answered, once
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


class _Changes:
    """Input requests that changed since a watcher last looked: the newest state of each, in order."""

    def __init__(self, tenant_id: str, session_id: str) -> None:
        self._tenant_id = tenant_id
        self._session_id = session_id
        self._changed: dict[str, v1.InputRequest] = {}
        self._overflowed = False
        self._woken = asyncio.Event()

    def committed(self, commits: Sequence[Commit]) -> None:
        """Take note of a commit."""
        for commit in commits:
            if commit.session.tenant_id == self._tenant_id and self._session_id in ("", commit.session.session_id):
                for request in commit.inputs:
                    self._changed.pop(request.input_request_id, None)
                    self._changed[request.input_request_id] = request
        if len(self._changed) > _MAX_WATCHED:
            self._overflowed = True
            self._changed.clear()
        if self._changed or self._overflowed:
            self._woken.set()

    async def take(self, timeout_seconds: float) -> list[v1.InputRequest]:
        """Return what changed, nothing when the time is over. Raises LIMIT_REACHED when too much changed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        if self._overflowed:
            raise _too_slow()
        self._woken.clear()
        batch = list(self._changed.values())
        self._changed.clear()
        return batch


class Inputs:
    """The rules of InputService."""

    def __init__(self, store: Store, limits: v1.Limits) -> None:
        self._store = store
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
        for name in ("session_id", "turn_id"):
            if value := getattr(request, name):
                checks.uuid(name, value)
        for state in request.states:
            checks.enum("states", v1.InputState, state)
        page = Page(checks.page_size(request.page_size, self._limits), request.page_token)
        states = list(request.states) or [v1.INPUT_STATE_PENDING]
        found, cursor = await self._store.inputs.page(tenant_id, request.session_id, request.turn_id, states, page)
        return v1.ListInputRequestsResponse(input_requests=found, next_page_token=cursor)

    async def respond(self, caller: Caller, request: v1.RespondToInputRequest) -> v1.RespondToInputResponse:
        """Record an answer. The commit is what hands it to the turn that waits."""
        tenant_id = checks.tenant(caller, request.tenant_id)
        checks.request_id(request.request_id, self._limits)
        if (known := await answered(self._store, caller, request, v1.RespondToInputResponse)) is not None:
            return known
        checks.uuid("input_request_id", request.input_request_id)
        checks.bounded("response", request.response.ByteSize(), self._limits.max_response_bytes)
        found = await self._store.inputs.get(tenant_id, request.input_request_id)
        if found is None:
            raise _not_found(request.input_request_id)
        check_response(found, request.response)

        def act(tx: Tx) -> v1.RespondToInputResponse:
            return v1.RespondToInputResponse(input_request=_answer(tx, tenant_id, caller, request))

        return await self._store.write(
            lambda tx: once(tx, caller, request, v1.RespondToInputResponse, lambda: act(tx)),
            SessionKey(tenant_id, found.session_id),
        )

    async def watch(
        self, tenant_id: str, session_id: str, heartbeat_seconds: float
    ) -> AsyncGenerator[list[v1.InputRequest], None]:
        """Yield what waits, then each change; an empty list when nothing happened for a while."""
        changes = _Changes(tenant_id, session_id)
        unsubscribe = self._store.subscribe(changes.committed)
        try:
            async with contextlib.aclosing(self._all_pending(tenant_id, session_id)) as pages:
                async for pending in pages:
                    yield pending
            while True:
                yield await changes.take(heartbeat_seconds)
        finally:
            unsubscribe()

    async def _all_pending(self, tenant_id: str, session_id: str) -> AsyncGenerator[list[v1.InputRequest], None]:
        cursor = ""
        while True:
            page = Page(self._limits.max_page_size, cursor)
            found, cursor = await self._store.inputs.page(tenant_id, session_id, "", [v1.INPUT_STATE_PENDING], page)
            yield found
            if not cursor:
                return


def check_response(request: v1.InputRequest, response: v1.InputResponse) -> None:
    """Refuse an answer that the request's options do not contain."""
    kind = response.WhichOneof("choice")
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
    for text in answers.by_question:
        if text not in asked:
            raise checks.invalid("response.answers.by_question", f"has no question {text[:200]!r}.", asked)
    for text, question in asked.items():
        field = f"response.answers.by_question[{text[:200]!r}]"
        labels = list(answers.by_question[text].labels) if text in answers.by_question else []
        checks.required(field, [label for label in labels if label.strip()])
        if len(labels) > 1 and not question.multi_select:
            raise checks.invalid(field, "takes one label.")


def _answer(tx: Tx, tenant_id: str, caller: Caller, call: v1.RespondToInputRequest) -> v1.InputRequest:
    request = tx.inputs.get(tenant_id, call.input_request_id)
    if request is None:
        raise _not_found(call.input_request_id)
    key = SessionKey(tenant_id, request.session_id)
    session = read_session(tx, key)
    require_writer(session, call.actor)
    if request.state != v1.INPUT_STATE_PENDING:
        if request.state == v1.INPUT_STATE_ANSWERED and request.response == call.response:
            return request
        raise _already_resolved(request)
    request.state = v1.INPUT_STATE_ANSWERED
    request.response.CopyFrom(call.response)
    request.responder = call.actor or caller.principal
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
    tx.append(key, [events.said(request.turn_id, call.actor, input_resolved=resolved)], None)
    return request


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
