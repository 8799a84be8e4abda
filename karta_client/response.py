"""What a turn answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from karta import v1

S_co = TypeVar("S_co", covariant=True)


@dataclass(frozen=True, repr=False)
class Response(Generic[S_co]):
    """The answer of a completed turn, and the session to go on with."""

    session: S_co
    turn: v1.Turn

    def __repr__(self) -> str:
        return f"<Response {v1.TurnState.Name(self.turn.state).removeprefix('TURN_STATE_')}: {self.text[:200]!r}>"

    @property
    def text(self) -> str:
        """The agent's final message."""
        return self.turn.text

    @property
    def usage(self) -> v1.Usage:
        """What the turn used."""
        return self.turn.usage
