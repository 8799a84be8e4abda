"""Participants: who takes part in a session, and what each may do."""

from collections.abc import Callable
from typing import TypeVar

from karta import v1
from karta_server.core import checks, events
from karta_server.core.caller import Caller
from karta_server.core.requests import answered, once
from karta_server.core.session_record import check_etag, read_session, touch
from karta_server.errors import KartaError
from karta_server.storage.contract import SessionKey, Store, Tx

_UPDATABLE = ("display_name", "role")
_Request = v1.AddParticipantRequest | v1.UpdateParticipantRequest | v1.RemoveParticipantRequest
R = TypeVar("R", v1.AddParticipantResponse, v1.UpdateParticipantResponse, v1.RemoveParticipantResponse)


def find(session: v1.Session, participant_id: str) -> v1.Participant:
    """Return a participant of the session."""
    for participant in session.participants:
        if participant.participant_id == participant_id:
            return participant
    raise KartaError(
        v1.ERROR_REASON_PARTICIPANT_NOT_FOUND,
        f"The session has no participant {participant_id!r}; AddParticipant brings one in.",
        participant_id=participant_id[:128],
    )


def require_writer(session: v1.Session, participant_id: str) -> v1.Participant | None:
    """Return the participant, None when nobody is named; refuse an observer."""
    if not participant_id:
        return None
    participant = find(session, participant_id)
    if participant.role == v1.PARTICIPANT_ROLE_OBSERVER:
        raise KartaError(
            v1.ERROR_REASON_PARTICIPANT_IS_OBSERVER,
            f"{participant_id!r} observes this session and cannot write in it; an owner can change the role.",
            participant_id=participant_id,
        )
    return participant


def require_owner(session: v1.Session, participant_id: str) -> None:
    """Refuse a named participant that does not own the session."""
    if participant_id and find(session, participant_id).role != v1.PARTICIPANT_ROLE_OWNER:
        raise KartaError(
            v1.ERROR_REASON_PARTICIPANT_IS_NOT_OWNER,
            f"{participant_id!r} is no owner of this session, and only owners manage participants.",
            participant_id=participant_id,
        )


def joined(participant: v1.Participant) -> v1.Participant:
    """Return the participant as it is kept: defaults filled in, the time of joining set."""
    return v1.Participant(
        participant_id=participant.participant_id,
        kind=participant.kind or v1.PARTICIPANT_KIND_HUMAN,
        display_name=participant.display_name or participant.participant_id,
        role=participant.role or v1.PARTICIPANT_ROLE_MEMBER,
        join_time=events.now(),
    )


def add(session: v1.Session, participant: v1.Participant, limit: int) -> v1.Participant | None:
    """Add a participant and return it; None when it is there already.

    What the request leaves unspecified agrees with any value that is there.
    """
    for present in session.participants:
        if present.participant_id == participant.participant_id:
            _require_same(present, participant)
            return None
    checks.bounded("participants", len(session.participants) + 1, limit, "entries")
    added = joined(participant)
    session.participants.append(added)
    return added


def _require_same(present: v1.Participant, wanted: v1.Participant) -> None:
    for field in ("kind", "display_name", "role"):
        if getattr(wanted, field) and getattr(wanted, field) != getattr(present, field):
            raise KartaError(
                v1.ERROR_REASON_PARTICIPANT_EXISTS,
                f"The session has a participant {present.participant_id!r} with another {field}; "
                "UpdateParticipant changes it.",
                participant_id=present.participant_id,
            )


def update(session: v1.Session, changed: v1.Participant, paths: list[str]) -> v1.Participant:
    """Set the named fields of a participant and return it."""
    present = find(session, changed.participant_id)
    for path in paths:
        setattr(present, path, getattr(changed, path))
    present.display_name = present.display_name or present.participant_id
    present.role = present.role or v1.PARTICIPANT_ROLE_MEMBER
    return present


def remove(session: v1.Session, participant_id: str) -> None:
    """Remove a participant."""
    session.participants.remove(find(session, participant_id))


class Participants:
    """The rules of the participant calls of SessionService."""

    def __init__(self, store: Store, limits: v1.Limits) -> None:
        self._store = store
        self._limits = limits

    async def add(self, caller: Caller, request: v1.AddParticipantRequest) -> v1.AddParticipantResponse:
        """Add a participant."""
        checks.participant("participant", request.participant)

        def change(session: v1.Session) -> v1.Event | None:
            require_owner(session, request.actor)
            added = add(session, request.participant, self._limits.max_participants)
            return _joined_event(added, request.actor) if added else None

        return await self._change(caller, request, v1.AddParticipantResponse, change)

    async def update(self, caller: Caller, request: v1.UpdateParticipantRequest) -> v1.UpdateParticipantResponse:
        """Set fields of a participant."""
        checks.participant("participant", request.participant)
        paths = list(request.update_mask.paths)
        checks.required("update_mask", paths)
        for path in paths:
            if path not in _UPDATABLE:
                raise checks.invalid("update_mask", f"cannot have {path!r}.", _UPDATABLE)

        def change(session: v1.Session) -> v1.Event:
            check_etag(session, request.etag)
            require_owner(session, request.actor)
            return _joined_event(update(session, request.participant, paths), request.actor)

        return await self._change(caller, request, v1.UpdateParticipantResponse, change)

    async def remove(self, caller: Caller, request: v1.RemoveParticipantRequest) -> v1.RemoveParticipantResponse:
        """Remove a participant."""
        checks.required("participant_id", request.participant_id)

        def change(session: v1.Session) -> v1.Event:
            if request.actor != request.participant_id:
                require_owner(session, request.actor)
            remove(session, request.participant_id)
            left = v1.ParticipantLeft(participant_id=request.participant_id)
            return events.said("", request.actor, participant_left=left)

        return await self._change(caller, request, v1.RemoveParticipantResponse, change)

    async def _change(
        self, caller: Caller, request: _Request, answer: type[R], change: Callable[[v1.Session], v1.Event | None]
    ) -> R:
        checks.request_id(request.request_id, self._limits)
        checks.uuid("session_id", request.session_id)
        key = SessionKey(checks.tenant(caller, request.tenant_id), request.session_id)
        if (known := await answered(self._store, caller, request, answer)) is not None:
            return known

        def act(tx: Tx) -> R:
            session = read_session(tx, key)
            event = change(session)
            if event is not None:
                touch(session)
                tx.sessions.put(session)
                tx.append(key, [event], None)
            return answer(session=tx.sessions.get(key))

        return await self._store.write(lambda tx: once(tx, caller, request, answer, lambda: act(tx)), key)


def _joined_event(participant: v1.Participant, actor: str) -> v1.Event:
    return events.said("", actor, participant_joined=v1.ParticipantJoined(participant=participant))
