"""How a message is sent: the keyword arguments of the sending methods that hand them on."""

from __future__ import annotations

from typing import Literal, TypedDict

from karta import v1
from karta_client.input import InputCallback
from karta_client.participant import ParticipantLike


class StreamOptions(TypedDict, total=False):
    """Arguments of `stream` in a session."""

    agent: v1.Agent | str | None
    """Who answers this turn; None: the session's agent."""
    participant: ParticipantLike | None
    """Who speaks; added to the session when new. None: the session's user."""
    on_input: InputCallback | None
    """What answers input requests; None: that of the session, or else of the client."""
    busy: Literal["queue", "reject"]
    """What to do when the session is busy: wait behind the others (default), or FailedPreconditionError."""


class SendOptions(StreamOptions, total=False):
    """Arguments of `send` in a session."""

    timeout: float | None
    """How many seconds to wait for the answer; None: as long as it takes."""
