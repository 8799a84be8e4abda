"""Events as user code meets them: a thin view over v1.Event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from karta import v1
from karta_client.input import InputRequest

Answerable = Callable[[v1.InputRequest], InputRequest[Any]]


class Event:
    """Something that happened in a session.

    `type` is the name of the kind ("text", "tool_use", "turn_finished", …).
    `raw` is the v1.Event. Fields of the kind's message are attributes
    (`event.name` of a tool_use, `event.usage` of a turn_finished), and so are
    those of the event itself (`event.sequence`, `event.turn_id`).
    """

    __slots__ = ("_answerable", "raw", "type")

    def __init__(self, raw: v1.Event, answerable: Answerable) -> None:
        self.raw = raw
        self.type: str = raw.WhichOneof("kind") or ""
        self._answerable = answerable

    @property
    def text(self) -> str:
        """The text of what has one: what to append for text and reasoning, the whole text of a
        message, the output of a tool, the message of an error; else empty."""
        payload = self._payload
        if isinstance(payload, v1.MessageReceived):
            return "".join(part.text for part in payload.message.parts)
        if isinstance(payload, v1.ToolResult):
            return payload.output
        if isinstance(payload, v1.Error):
            return payload.message
        return getattr(payload, "text", "")

    @property
    def input(self) -> Any:
        """Of an input_required: the InputRequest, to be answered. Of a tool_use: its input, JSON text."""
        payload = self._payload
        if isinstance(payload, v1.InputRequired):
            return self._answerable(payload.input_request)
        if isinstance(payload, v1.ToolUse):
            return payload.input
        raise AttributeError(f"an event of type {self.type!r} has no input")

    @property
    def _payload(self) -> Any:
        return getattr(self.raw, self.type) if self.type else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        payload = self._payload
        if payload is not None and name in payload.DESCRIPTOR.fields_by_name:
            return getattr(payload, name)
        if name in self.raw.DESCRIPTOR.fields_by_name:
            return getattr(self.raw, name)
        raise AttributeError(f"an event of type {self.type!r} has no {name!r}")

    def __repr__(self) -> str:
        return f"<Event {self.raw.sequence} {self.type}>"
