"""The calls that the client makes, as values: which method, with which request.

Each is a read or carries a request_id, so that every one of them can be
repeated when the connection is lost.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message

from karta import v1

R_co = TypeVar("R_co", covariant=True)

DEFAULT_TIMEOUT_SECONDS = 60.0
WAIT_MARGIN_SECONDS = 15.0


@dataclass(frozen=True)
class Call(Generic[R_co]):
    """A call that answers with R: `service` is a stub of the Connection, `method` one of its RPCs."""

    service: str
    method: str
    request: Message
    timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS


class Frame(Protocol):
    """What every stream of events consists of."""

    @property
    def events(self) -> Sequence[v1.Event]: ...

    @property
    def latest_sequence(self) -> int: ...


def new_request_id() -> str:
    """Return an id that makes one request safe to repeat."""
    return uuid.uuid4().hex


def start_request(
    text: str, *, agent: str = "", participant_id: str = "", reject_when_busy: bool = False
) -> v1.StartTurnRequest:
    """Return the request for a turn, without its session."""
    return v1.StartTurnRequest(
        request_id=new_request_id(),
        message=v1.Message(parts=[v1.Part(text=text)]),
        agent=agent,
        participant_id=participant_id,
        busy_policy=v1.BUSY_POLICY_REJECT if reject_when_busy else v1.BUSY_POLICY_QUEUE,
    )


def start_turn(start: v1.StartTurnRequest) -> Call[v1.StartTurnResponse]:
    return Call("turns", "StartTurn", start)


def run_turn(start: v1.StartTurnRequest, kinds: Iterable[str]) -> Call[Frame]:
    return Call("turns", "RunTurn", v1.RunTurnRequest(start=start, kinds=kinds), None)


def watch_turn(session_id: str, turn_id: str, after_sequence: int, kinds: Iterable[str]) -> Call[Frame]:
    request = v1.WatchTurnRequest(session_id=session_id, turn_id=turn_id, after_sequence=after_sequence, kinds=kinds)
    return Call("turns", "WatchTurn", request, None)


def watch_session(session_id: str, after_sequence: int, kinds: Iterable[str], follow: bool) -> Call[Frame]:
    request = v1.WatchSessionRequest(session_id=session_id, after_sequence=after_sequence, kinds=kinds, follow=follow)
    return Call("sessions", "WatchSession", request, None)


def wait_turn(session_id: str, turn_id: str, seconds: float) -> Call[v1.WaitTurnResponse]:
    request = v1.WaitTurnRequest(session_id=session_id, turn_id=turn_id)
    request.timeout.FromMicroseconds(max(1, int(seconds * 1_000_000)))
    return Call("turns", "WaitTurn", request, seconds + WAIT_MARGIN_SECONDS)


def list_turns(session_id: str, page_token: str) -> Call[v1.ListTurnsResponse]:
    return Call("turns", "ListTurns", v1.ListTurnsRequest(session_id=session_id, page_token=page_token))


def cancel_turn(session_id: str, turn_id: str, reason: str) -> Call[v1.CancelTurnResponse]:
    request = v1.CancelTurnRequest(request_id=new_request_id(), session_id=session_id, turn_id=turn_id, reason=reason)
    return Call("turns", "CancelTurn", request)


def create_session(
    *,
    metadata: Mapping[str, str] | None,
    title: str = "",
    agent: str = "",
    harness: str = "",
    user_id: str = "",
    participants: Iterable[v1.Participant] = (),
) -> Call[v1.CreateSessionResponse]:
    if isinstance(metadata, str):
        raise TypeError("metadata is a mapping; to go on in a session by its id, write session(id=...)")
    request = v1.CreateSessionRequest(
        request_id=new_request_id(),
        metadata=metadata,
        title=title,
        agent=agent,
        harness=harness,
        user_id=user_id,
        participants=participants,
        reuse=v1.SESSION_REUSE_LATEST if metadata else v1.SESSION_REUSE_NEVER,
    )
    return Call("sessions", "CreateSession", request)


def get_session(session_id: str) -> Call[v1.GetSessionResponse]:
    return Call("sessions", "GetSession", v1.GetSessionRequest(session_id=session_id))


def list_sessions(metadata: Mapping[str, str] | None, query: str, page_token: str) -> Call[v1.ListSessionsResponse]:
    request = v1.ListSessionsRequest(metadata=metadata, query=query, page_token=page_token)
    return Call("sessions", "ListSessions", request)


def update_session(session: v1.Session, paths: Iterable[str]) -> Call[v1.UpdateSessionResponse]:
    request = v1.UpdateSessionRequest(request_id=new_request_id(), session=session)
    request.update_mask.paths.extend(paths)
    return Call("sessions", "UpdateSession", request)


def delete_session(session_id: str) -> Call[v1.DeleteSessionResponse]:
    request = v1.DeleteSessionRequest(request_id=new_request_id(), session_id=session_id)
    return Call("sessions", "DeleteSession", request)


def add_participant(session_id: str, participant: v1.Participant) -> Call[v1.AddParticipantResponse]:
    request = v1.AddParticipantRequest(request_id=new_request_id(), session_id=session_id, participant=participant)
    return Call("sessions", "AddParticipant", request)


def list_agents(harness: str = "") -> Call[v1.ListAgentsResponse]:
    return Call("agents", "ListAgents", v1.ListAgentsRequest(harness=harness))


def list_inputs(session_id: str, turn_id: str) -> Call[v1.ListInputRequestsResponse]:
    """The newest pending ones; a turn has never more than a page of them."""
    return Call("inputs", "ListInputRequests", v1.ListInputRequestsRequest(session_id=session_id, turn_id=turn_id))


def respond(input_request_id: str, response: v1.InputResponse, actor: str = "") -> Call[v1.RespondToInputResponse]:
    request = v1.RespondToInputRequest(
        request_id=new_request_id(),
        input_request_id=input_request_id,
        response=response,
        actor=actor,
    )
    return Call("inputs", "RespondToInput", request)


def server_info() -> Call[v1.GetServerInfoResponse]:
    return Call("server", "GetServerInfo", v1.GetServerInfoRequest())
