"""What is kept of a conversation between processes of Claude Code."""

import json
import uuid
from dataclasses import asdict, dataclass

from karta import v1
from karta_server.errors import KartaError

VERSION = 1


@dataclass
class Memory:
    """The memory of a session, as Karta stores it: JSON, a few hundred bytes."""

    conversation: str
    """The id of the conversation in Claude Code; a UUID."""
    begun: bool = False
    """Whether Claude Code may have a transcript of it."""
    turns: int = 0
    """How many turns have ended."""
    agent: str = ""
    """The agent that the last process ran; empty: the default."""
    agent_is_sticky: bool = False
    """Whether a process ran a named agent: Claude Code then comes back to it unless told otherwise."""
    model: str = ""
    """The model of processes whose agent asks for none; empty while unknown."""
    cost_usd_micros: int = 0
    """The conversation's cumulative cost as last reported, in millionths of a US dollar."""

    @classmethod
    def load(cls, session_id: str, stored: bytes) -> "Memory":
        """Return the stored memory, or that of a new conversation when nothing is stored.

        Raises KartaError HARNESS_START_FAILED for one that another version wrote.
        """
        if not stored:
            return cls(conversation=_conversation_id(session_id))
        try:
            fields = json.loads(stored)
            if fields.pop("version") == VERSION:
                return cls(**fields)
            problem = f"its version is not {VERSION}"
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problem = repr(error)
        message = f"The memory of this conversation cannot be read ({problem}); begin a new session."
        raise KartaError(v1.ERROR_REASON_HARNESS_START_FAILED, message, harness="claude_code")

    def dump(self) -> bytes:
        """Return what `load` takes."""
        return json.dumps({"version": VERSION, **asdict(self)}).encode()


def _conversation_id(session_id: str) -> str:
    try:
        return str(uuid.UUID(session_id))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, session_id))
