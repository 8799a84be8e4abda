"""What clients know for certain: every event that they saw, every request that they sent, every answer."""

from dataclasses import dataclass, field
from typing import Any

import wire

Message = Any


@dataclass
class Sent:
    """A request with a request_id, and its first answer if one came."""

    kind: str
    """create, start, respond, cancel or delete."""
    request: Message
    marker: str = ""
    """Text that is in this message alone."""
    answer: Message | None = None
    counted: bool = False

    def answered(self, answer: Message) -> None:
        """Take an answer; a repeated request gets the first one."""
        if self.answer is None:
            self.answer = answer
        elif self.kind != "cancel":  # Which answers with the turn as it is then.
            assert answer == self.answer, f"{self.request} was answered twice: {self.answer}, then {answer}"


@dataclass
class Known:
    """What clients know of one session."""

    session_id: str
    seen: dict[int, bytes] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    deleting: bool = False

    def see(self, frame: bytes, expected: int = 0) -> int:
        """Record the events of a frame; return the last one's sequence, 0 for a heartbeat.

        `expected` is the sequence that comes next on a stream without a gap.
        """
        last = 0
        for data in wire.split(frame):
            sequence = wire.event(data).sequence
            if expected:
                assert sequence == expected, f"{self.session_id}: {sequence} came where {expected} was due"
                expected += 1
            assert sequence > last, f"{self.session_id}: {sequence} came behind {last}"
            before = self.seen.setdefault(sequence, data)
            assert before == data, f"{self.session_id}: two clients saw two events {sequence}: {before!r}, {data!r}"
            last = sequence
        return last

    @property
    def deleted(self) -> bool:
        """Whether a client was told that the session is deleted."""
        return any(sent.kind == "delete" and sent.answer is not None for sent in self.sent)
