"""What a session tells without a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from karta import v1


class SessionView:
    """What both kinds of session can tell without a call. `raw` is the v1.Session as it was last seen."""

    def __init__(self, raw: v1.Session) -> None:
        self.raw = raw

    @property
    def id(self) -> str:
        """The session_id."""
        return self.raw.session_id

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the application knows the session by."""
        return self.raw.metadata

    @property
    def participants(self) -> Sequence[v1.Participant]:
        """Who takes part, in the order in which they joined."""
        return self.raw.participants

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    @property
    def current_agent(self) -> str | None:
        """The agent that answers turns which name none; None for the default. `set_agent` changes it."""
        return self.raw.agent or None
