"""What a harness has to do to run Karta's turns.

A harness is two small classes: a `HarnessAdapter` for the program, one a
server, and a `HarnessSession` for a conversation with it. Both speak messages
of karta.v1. Everything durable, sequence numbers, input requests as rows,
queueing and recovery are Karta's business, not the harness's.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from karta import v1


@dataclass(frozen=True)
class HarnessSettings:
    """What an adapter is given once, at the start of the server."""

    project: Path
    """The folder that the agents work in; exists."""
    state: Path
    """A folder of the adapter's own for what must outlive a process; may not exist yet."""
    environment: Mapping[str, str]
    """The whole environment of the harness's processes: nothing else reaches them."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`harness.<name>` of karta.jsonc."""
    start_timeout_seconds: float = 60.0
    """How long a process may take until it takes a prompt."""


@dataclass(frozen=True)
class Prompt:
    """One turn's worth of work."""

    turn_id: str
    text: str
    """What the model reads; attribution to a participant is in it already."""
    agent: str
    """The agent that answers; empty means the harness's default."""


class HarnessSession(ABC):
    """A live conversation. Used by one turn at a time; methods are called from the event loop."""

    @property
    @abstractmethod
    def memory(self) -> bytes:
        """What `HarnessAdapter.open` needs to go on with this conversation in a new process.

        Opaque to Karta, which stores it when a turn starts to yield events and
        when it ends.
        """

    @abstractmethod
    def run_turn(self, prompt: Prompt) -> AsyncGenerator[v1.Event, None]:
        """Run one turn, yielding its events in order.

        Set on each event: the kind, and `source`, `actor`, `step`, `part_id`,
        `parent_tool_use_id`, `may_ignore` where they apply; the rest is Karta's.
        Kinds that a harness yields: step_start, text, reasoning, tool_use,
        tool_result, step_finish, retrying, error, harness_notice, agent_handoff
        never, and

        - input_required with an InputRequest of kind, title, tool_use_id,
          tool_name, tool_input, questions and options. The iterator may go on
          yielding, or wait until `answer` is called.
        - message_completed once, with the final text, before
        - turn_finished, always the last: COMPLETED, FAILED with an error, or
          CANCELLED after `interrupt`; with the usage of the whole turn.

        A session that can run no further turn (its process died) raises
        KartaError instead of yielding turn_finished; Karta then closes it and
        opens a new one from `memory` for the next turn. Closing the iterator
        early is the same as `interrupt` followed by `close`.
        """

    @abstractmethod
    async def answer(self, input_request: v1.InputRequest) -> None:
        """Give the harness the answer of an input request that `run_turn` yielded.

        `state` is ANSWERED with `response` set; `tool_use_id` says which. Called
        at most once for each.
        """

    @abstractmethod
    async def interrupt(self) -> None:
        """Ask the running turn to stop: `run_turn` then ends with CANCELLED, or as it ended just before.

        Returns when the harness has heard it. Does nothing when no turn runs.
        Karta closes the session when the turn does not end in time.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the session's processes, by force after a few seconds; idempotent, never raises."""


class HarnessAdapter(ABC):
    """A harness program, installed or not."""

    name: ClassVar[str]
    """The harness's name in the contract: lower case, with underscores."""
    markers: ClassVar[tuple[str, ...]] = ()
    """Files or folders of a project that say it is made for this harness."""

    def __init__(self, settings: HarnessSettings) -> None:
        self.settings = settings

    @abstractmethod
    async def describe(self) -> v1.Harness:
        """Return name, version, capabilities and whether it can be used here; never raises.

        `unavailable_reason` says what was looked for and how to install it.
        """

    @abstractmethod
    async def agents(self) -> list[v1.Agent]:
        """Return the project's agents by name, read anew each time.

        A file that cannot be read as an agent is left out and logged.
        """

    @abstractmethod
    async def open(self, session_id: str, memory: bytes) -> HarnessSession:
        """Begin a conversation, or go on with the one that `memory` is of (empty: a new one).

        Cheap: processes start with the first turn. Raises KartaError
        HARNESS_NOT_INSTALLED.
        """

    async def close(self) -> None:
        """End what the adapter itself holds; its sessions are closed before."""
        return
