"""What a session log is meant to be: a list."""

from dataclasses import dataclass, field
from typing import NamedTuple

from karta import v1


class Entry(NamedTuple):
    """An event: its text or reasoning, when it was recorded, and the transaction that it came with."""

    kind: str
    text: str
    micros: int
    group: int

    def is_like(self, event: v1.Event) -> bool:
        return (event.WhichOneof("kind"), getattr(event, self.kind).text) == (self.kind, self.text) and (
            event.create_time.ToMicroseconds() == self.micros
        )


@dataclass
class LogModel:
    """A session's log as a list; sequence n is at n - 1. Trimming moves `oldest`, and nothing else."""

    entries: list[Entry] = field(default_factory=list)
    oldest: int = 1
    farthest: int = 1
    """How far `oldest` may have moved by trims whose result is not known yet."""
    exists: bool = True
    turn_id: str = ""
    fence: int = 0

    @property
    def latest(self) -> int:
        return len(self.entries)

    def between(self, first: int, last: int, kinds: frozenset[str] = frozenset()) -> list[tuple[int, Entry]]:
        """Return the entries first..last with their sequences, of these kinds or of all."""
        wanted = enumerate(self.entries[first - 1 : last], first)
        return [(sequence, entry) for sequence, entry in wanted if not kinds or entry.kind in kinds]

    def trimmed_to(self, keep_events: int, keep_since: int) -> range:
        """Return what the oldest sequence may be after a trim: whole chunks go, and a chunk is of one transaction."""
        keep = self.oldest
        if keep_events:
            keep = max(keep, self.latest - keep_events + 1)
        while keep_since and keep <= self.latest and self.entries[keep - 1].micros < keep_since:
            keep += 1
        keep = max(min(keep, self.latest), self.oldest)
        least = keep
        while least > self.oldest and self.entries[least - 2].group == self.entries[keep - 1].group:
            least -= 1
        return range(least, keep + 1)
