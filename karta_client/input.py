"""Input requests as user code meets them: what is asked, and the ways to answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from karta import v1
from karta_client.errors import InvalidArgumentError

R = TypeVar("R")

_SCOPES = {"once": v1.ALLOW_SCOPE_ONCE, "session": v1.ALLOW_SCOPE_SESSION}


class InputRequest(Generic[R]):
    """A v1.InputRequest (`raw`; its fields are attributes) that can be answered.

    What `allow`, `deny` and `answer` do depends on where it comes from:

    - An `on_input` callback returns what they return.
    - `event.input` in a `for` loop, and `inputs` of an InputRequiredError from
      a blocking call: they answer at once and return the v1.InputRequest as it
      is then.
    - In an `async for` loop, or from an awaited call: they return an awaitable
      that does so.
    """

    def __init__(self, raw: v1.InputRequest, deliver: Callable[[v1.InputResponse], R]) -> None:
        self.raw = raw
        self._deliver = deliver

    def allow(
        self,
        scope: Literal["once", "session"] = "once",
        updated_input: Mapping[str, Any] | str | None = None,
    ) -> R:
        """Let the tool run, once or for the rest of the session; with other input when that is given (JSON)."""
        if scope not in _SCOPES:
            raise _invalid("scope", f'scope is "once" or "session", not {scope!r}.')
        allow = v1.Allow(scope=_SCOPES[scope])
        if updated_input is not None:
            allow.updated_input = updated_input if isinstance(updated_input, str) else json.dumps(dict(updated_input))
        return self._deliver(v1.InputResponse(allow=allow))

    def deny(self, message: str = "", interrupt: bool = False) -> R:
        """Refuse; the model reads the message. With `interrupt` the turn ends CANCELLED."""
        return self._deliver(v1.InputResponse(deny=v1.Deny(message=message, interrupt=interrupt)))

    def answer(self, answers: Mapping[str, str | Sequence[str]] | str) -> R:
        """Answer the questions: by their text the chosen label, labels, or free text.

        A plain string answers a request with one question.
        """
        if isinstance(answers, str):
            if len(self.raw.questions) != 1:
                raise _invalid("answers", f"There are {len(self.raw.questions)} questions: give a mapping.")
            answers = {self.raw.questions[0].question: answers}
        found = {
            question: v1.Answer(labels=[labels] if isinstance(labels, str) else labels)
            for question, labels in answers.items()
        }
        return self._deliver(v1.InputResponse(answers=v1.Answers(by_question=found)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.raw, name)

    def __repr__(self) -> str:
        return f"<InputRequest {self.raw.input_request_id} {self.raw.title or self.raw.tool_name!r}>"


InputCallback = Callable[[InputRequest[v1.InputResponse]], v1.InputResponse | Awaitable[v1.InputResponse]]
"""Answers an input request: a function or a coroutine function that returns `request.allow()` and the like.
An async API runs a plain function in a thread, so it may block."""


def as_question(raw: v1.InputRequest) -> InputRequest[v1.InputResponse]:
    """Return the request for a callback: its methods return the answer."""
    return InputRequest(raw, lambda response: response)


def check_response(response: object) -> v1.InputResponse:
    """Return what a callback returned if it is an answer. Raises TypeError."""
    if isinstance(response, v1.InputResponse):
        return response
    text = "on_input must return request.allow(), .deny() or .answer(), or another v1.InputResponse"
    raise TypeError(f"{text}; it returned {type(response).__name__}")


def _invalid(field: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="FIELD_INVALID", code="INVALID_ARGUMENT", metadata={"field": field})
