"""What is streamed: the same pieces of text in the same events on every side."""

import re

from google.protobuf import timestamp_pb2

from karta import v1

_WORDS = ("the", "session", "log", "is", "written", "once", "and", "read", "by", "everyone", "who", "watches", "it")
_PIECE = re.compile(r"\s*\S+|\s+\Z")

SESSION_ID = "0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
TURN_ID = "0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5c"


def prompt(pieces: int) -> str:
    """Return a prompt whose echo has this many pieces of text."""
    return " ".join(_WORDS[number % len(_WORDS)] for number in range(pieces - 1))


def pieces(text: str) -> list[str]:
    """Return the pieces in which the scripted harness answers: the words of `echo[1]: text`."""
    return _PIECE.findall(f"echo[1]: {text}")


def event() -> v1.Event:
    """Return an event of text as Karta streams it, but for sequence, time and text: peers set those."""
    return v1.Event(
        session_id=SESSION_ID, turn_id=TURN_ID, source=v1.EVENT_SOURCE_AGENT, step=1, part_id="1.0", create_time=now(0)
    )


def now(nanoseconds: int) -> timestamp_pb2.Timestamp:
    """Return a time."""
    return timestamp_pb2.Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


class LostEventsError(Exception):
    """A stream had a gap, or not all of its events."""


class Reader:
    """What every client of a stream of events does: it looks at each of them."""

    def __init__(self) -> None:
        self.sequence = 0
        self.texts = 0
        self.characters = 0

    def take(self, event: v1.Event) -> None:
        """Read an event."""
        if event.sequence != self.sequence + 1 and self.sequence:
            raise LostEventsError(f"event {event.sequence} came behind {self.sequence}")
        self.sequence = event.sequence
        if event.HasField("text"):
            self.texts += 1
            self.characters += len(event.text.text)

    def require(self, texts: int) -> None:
        """Refuse to have read anything else than this many pieces of text."""
        if self.texts != texts:
            raise LostEventsError(f"{self.texts} pieces of text came instead of {texts}")
