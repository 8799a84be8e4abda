"""Who speaks in a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from karta import v1

_ROLES = {
    "owner": v1.PARTICIPANT_ROLE_OWNER,
    "member": v1.PARTICIPANT_ROLE_MEMBER,
    "observer": v1.PARTICIPANT_ROLE_OBSERVER,
}


@dataclass(frozen=True)
class HumanAgent:
    """A person who takes part. `name` is the participant_id, `display_name` what the model reads."""

    name: str
    display_name: str = ""
    role: Literal["owner", "member", "observer"] = "member"

    def to_message(self) -> v1.Participant:
        return v1.Participant(
            participant_id=self.name,
            kind=v1.PARTICIPANT_KIND_HUMAN,
            display_name=self.display_name,
            role=_ROLES[self.role],
        )


ParticipantLike = HumanAgent | v1.Participant | str
"""A participant; a string names one that is in the session."""


def participant_id(participant: ParticipantLike | None) -> str:
    if participant is None or isinstance(participant, str):
        return participant or ""
    return participant.name if isinstance(participant, HumanAgent) else participant.participant_id


def participant_message(participant: ParticipantLike) -> v1.Participant:
    if isinstance(participant, HumanAgent):
        return participant.to_message()
    return v1.Participant(participant_id=participant) if isinstance(participant, str) else participant
