"""Sessions: making, finding, changing and deleting them."""

from collections.abc import Iterable

from karta import v1
from karta_server.core import checks, events, ledger
from karta_server.core.agents import Agents
from karta_server.core.caller import Caller
from karta_server.core.participants import joined, require_writer
from karta_server.core.requests import answered, once
from karta_server.core.session_record import check_etag, read_session, session_not_found, touch
from karta_server.core.turn_runner import TurnRunner
from karta_server.ids import new_id
from karta_server.storage.contract import Page, SessionFilter, SessionKey, Store, Tx

_UPDATABLE = ("title", "metadata", "agent", "state")


class Sessions:
    """The rules of SessionService, but for watching."""

    def __init__(self, store: Store, agents: Agents, runner: TurnRunner, limits: v1.Limits) -> None:
        self._store = store
        self._agents = agents
        self._runner = runner
        self._limits = limits

    async def create(self, caller: Caller, request: v1.CreateSessionRequest) -> v1.CreateSessionResponse:
        """Make a session, or find the one that is meant."""
        tenant_id = checks.tenant(caller, request.tenant_id)
        self._check_new(request)
        if (known := await answered(self._store, caller, request, v1.CreateSessionResponse)) is not None:
            return known
        harness = await self._agents.usable_harness(request.harness)
        agents = await self._agents.known(harness, request.agent)
        session = v1.Session(
            tenant_id=tenant_id,
            session_id=new_id(),
            user_id=request.user_id or caller.user_id,
            title=request.title,
            metadata=request.metadata,
            state=v1.SESSION_STATE_ACTIVE,
            agent=request.agent,
            harness=harness,
            etag="1",
        )

        def act(tx: Tx) -> v1.CreateSessionResponse:
            if request.reuse == v1.SESSION_REUSE_LATEST:
                found = tx.sessions.find_latest(tenant_id, session.user_id, dict(session.metadata))
                if found is not None:
                    return v1.CreateSessionResponse(session=found, reused=True)
            agents.require(request.agent)
            return v1.CreateSessionResponse(session=_create(tx, session, request.participants))

        key = SessionKey(tenant_id, session.session_id)
        return await self._store.write(
            lambda tx: once(tx, caller, request, v1.CreateSessionResponse, lambda: act(tx)), key
        )

    async def get(self, key: SessionKey) -> v1.Session:
        """Return a session."""
        checks.uuid("session_id", key.session_id)
        session = await self._store.sessions.get(key)
        if session is None:
            raise session_not_found(key)
        return session

    async def page(self, caller: Caller, request: v1.ListSessionsRequest) -> v1.ListSessionsResponse:
        """Return a page of sessions, newest activity first."""
        tenant_id = checks.tenant(caller, request.tenant_id)
        checks.metadata("metadata", request.metadata, self._limits)
        for state in request.states:
            checks.enum("states", v1.SessionState, state)
        checks.text("query", request.query, 256)
        where = SessionFilter(
            dict(request.metadata), request.user_id, tuple(request.states), request.agent, request.query
        )
        page = Page(checks.page_size(request.page_size, self._limits), request.page_token)
        sessions, cursor = await self._store.sessions.page(tenant_id, where, page)
        return v1.ListSessionsResponse(sessions=sessions, next_page_token=cursor)

    async def update(self, caller: Caller, request: v1.UpdateSessionRequest) -> v1.UpdateSessionResponse:
        """Set fields of a session; another agent is a handoff."""
        key = SessionKey(checks.tenant(caller, request.tenant_id), request.session.session_id)
        paths = list(request.update_mask.paths)
        self._check_update(request, paths)
        if (known := await answered(self._store, caller, request, v1.UpdateSessionResponse)) is not None:
            return known
        before = await self.get(key)
        agents = await self._agents.known(before.harness, request.session.agent if "agent" in paths else "")

        def act(tx: Tx) -> v1.UpdateSessionResponse:
            session = read_session(tx, key)
            check_etag(session, request.session.etag)
            require_writer(session, request.actor)
            agents.require(request.session.agent)
            _set_fields(tx, key, session, request, paths)
            return v1.UpdateSessionResponse(session=tx.sessions.get(key))

        return await self._store.write(
            lambda tx: once(tx, caller, request, v1.UpdateSessionResponse, lambda: act(tx)), key
        )

    async def delete(self, caller: Caller, request: v1.DeleteSessionRequest) -> v1.DeleteSessionResponse:
        """Stop what runs and remove the session with all that belongs to it."""
        key = SessionKey(checks.tenant(caller, request.tenant_id), request.session_id)
        checks.request_id(request.request_id, self._limits)
        checks.uuid("session_id", request.session_id)

        def act(tx: Tx) -> v1.DeleteSessionResponse:
            read_session(tx, key)
            tx.sessions.delete(key)
            return v1.DeleteSessionResponse()

        response = await self._store.write(
            lambda tx: once(tx, caller, request, v1.DeleteSessionResponse, lambda: act(tx)), key
        )
        # What runs can write no more; now it is stopped.
        await self._runner.forget(key, "The session was deleted.")
        return response

    def _check_new(self, request: v1.CreateSessionRequest) -> None:
        checks.request_id(request.request_id, self._limits)
        checks.text("user_id", request.user_id, 256)
        checks.text("title", request.title, self._limits.max_title_bytes)
        checks.metadata("metadata", request.metadata, self._limits)
        checks.enum("reuse", v1.SessionReuse, request.reuse)
        checks.bounded("participants", len(request.participants), self._limits.max_participants, "entries")
        seen: set[str] = set()
        for index, participant in enumerate(request.participants):
            checks.participant(f"participants[{index}]", participant)
            if participant.participant_id in seen:
                raise checks.invalid(f"participants[{index}].participant_id", "is there twice.")
            seen.add(participant.participant_id)

    def _check_update(self, request: v1.UpdateSessionRequest, paths: list[str]) -> None:
        checks.request_id(request.request_id, self._limits)
        checks.required("update_mask", paths)
        for path in paths:
            if path not in _UPDATABLE:
                raise checks.invalid("update_mask", f"cannot have {path!r}.", _UPDATABLE)
        checks.text("session.title", request.session.title, self._limits.max_title_bytes)
        checks.metadata("session.metadata", request.session.metadata, self._limits)
        if "state" in paths:
            checks.required("session.state", request.session.state)
            checks.enum("session.state", v1.SessionState, request.session.state)


def _create(tx: Tx, draft: v1.Session, participants: Iterable[v1.Participant]) -> v1.Session:
    session = v1.Session()
    session.CopyFrom(draft)
    key = SessionKey(session.tenant_id, session.session_id)
    session.create_time.CopyFrom(events.now())
    session.participants.extend(joined(participant) for participant in participants)
    tx.sessions.put(session)
    tx.append(key, [events.system("", session_created=v1.SessionCreated(session=session))], None)
    return read_session(tx, key)


def _set_fields(
    tx: Tx, key: SessionKey, session: v1.Session, request: v1.UpdateSessionRequest, paths: list[str]
) -> None:
    from_agent = session.agent
    for path in paths:
        if path == "metadata":
            session.metadata.clear()
            session.metadata.update(request.session.metadata)
        else:
            setattr(session, path, getattr(request.session, path))
    touch(session)
    if session.state == v1.SESSION_STATE_ARCHIVED:
        while (turn := tx.turns.next_queued(key)) is not None:
            ledger.withdraw(tx, session, turn, "The session was archived.")
    tx.sessions.put(session)
    if session.agent != from_agent:
        handoff = v1.AgentHandoff(from_agent=from_agent, to_agent=session.agent)
        tx.append(key, [events.said("", request.actor, agent_handoff=handoff)], None)
    others = [path for path in paths if path != "agent"]
    if others:
        updated = v1.SessionUpdated(session=session, update_paths=others)
        tx.append(key, [events.said("", request.actor, session_updated=updated)], None)
