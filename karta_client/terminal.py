"""Turns on a terminal: events as people read them, made harmless, in colour where that is wanted."""

import json
import os
from collections.abc import Callable
from typing import IO, Any, ClassVar

from rich.console import Console

from karta import v1
from karta_client.cleaning import clean, visible


def exact_input(tool_input: str) -> str:
    """Lay out a tool's input for an approval: nothing left out, nothing hidden.

    Text in which a key comes twice, or that is not JSON, is shown as it is:
    another reader may understand it otherwise.
    """
    try:
        document = json.loads(tool_input, object_pairs_hook=_unique)
    except ValueError:
        return visible(tool_input)
    return visible(json.dumps(document, indent=2, ensure_ascii=False))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key comes twice")
    return document


def short_input(tool_input: str, width: int) -> str:
    """Return a tool's input in one line of at most `width` characters."""
    try:
        document = json.loads(tool_input)
    except ValueError:
        document = None
    if isinstance(document, dict):
        values = [
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in document.values()
        ]
        tool_input = (
            values[0] if len(values) == 1 else "  ".join(f"{k}={v}" for k, v in zip(document, values, strict=True))
        )
    return shorten(tool_input, width)


def shorten(text: str, width: int) -> str:
    """Return the text in one line of at most `width` characters, made harmless."""
    line = " ".join(clean(text[: 8 * width]).split())
    return line if len(line) <= width and len(text) <= 8 * width else line[: max(width - 1, 0)] + "…"


def usage_line(usage: v1.Usage) -> str:
    """Return what was used: tokens read and written, and the cost when it is known."""
    parts = [f"{usage.input_tokens + usage.cache_read_tokens:,} in"]
    if usage.cache_read_tokens:
        parts[0] += f" ({usage.cache_read_tokens:,} cached)"
    parts.append(f"{usage.output_tokens:,} out")
    if usage.HasField("cost_usd_micros"):
        parts.append(f"${usage.cost_usd_micros / 1_000_000:.4f}")
    return " · ".join(parts)


def error_line(error: v1.Error) -> str:
    """Return a failure as "REASON: message"."""
    return f"{v1.ErrorReason.Name(error.reason).removeprefix('ERROR_REASON_')}: {clean(error.message)}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command to end quietly, in its own way."""
        raise BrokenPipeError


def make_console(file: IO[str] | None = None) -> Console:
    """Return a console for a file, stdout unless given; plain text when it is no terminal, or with NO_COLOR."""
    plain = bool(os.environ.get("NO_COLOR"))
    return _Console(
        file=file, color_system=None if plain else "auto", highlight=False, markup=False, emoji=False, soft_wrap=True
    )


class Renderer:
    """Writes events to a console as they come.

    `own` holds the ids of the turns whose message the reader typed himself and
    need not see again; the caller may add to it at any time. With `asks`, input
    requests are left to whoever asks the reader for the answer.
    """

    def __init__(self, console: Console, *, asks: bool = False) -> None:
        self.console = console
        self.asks = asks
        self.own: set[str] = set()
        self._part: tuple[str, str, str] | None = None
        """What is being written: kind, part, subagent. None at the beginning of a line."""
        self._at_line_start = True
        self._wrote_text = False
        self._agent = ""
        self._tools: dict[str, str] = {}
        """Names of the turn's tool calls that run."""

    def event(self, event: v1.Event) -> None:
        """Write an event; kinds that tell a reader nothing, and unknown ones, write nothing."""
        if handler := self._HANDLERS.get(event.WhichOneof("kind") or ""):
            handler(self, event)

    def line(self, text: str, style: str = "") -> None:
        """Write a line of its own, made harmless."""
        self.end_line()
        self.console.out(clean(text), style=style or None, highlight=False)

    def end_line(self) -> None:
        """Begin a new line if one has begun."""
        if not self._at_line_start:
            self.console.out("", highlight=False)
        self._at_line_start, self._part = True, None

    def request(self, request: v1.InputRequest) -> None:
        """Write what an input request asks for, a tool's input to the letter."""
        self.line(f"? {shorten(request.title or request.tool_name, 200)}", "bold yellow")
        if request.kind == v1.INPUT_KIND_TOOL_PERMISSION:
            self.line(f"{visible(request.tool_name)} {exact_input(request.tool_input)}")

    def _delta(self, event: v1.Event, text: str, style: str = "") -> None:
        part = (event.WhichOneof("kind") or "", event.part_id, event.parent_tool_use_id)
        if part != self._part:
            self.end_line()
        text = clean(text)
        if not text:
            return
        self._part = part
        self.console.out(text, style=style or None, highlight=False, end="")
        self._at_line_start = text.endswith("\n")

    def _message(self, event: v1.Event) -> None:
        if event.turn_id in self.own:
            return
        received = event.message_received
        text = "\n".join(part.text for part in received.message.parts)
        self.line(f"{received.display_name or event.actor or 'user'}: {text}", "bold")

    def _queued(self, event: v1.Event) -> None:
        self.line(f"queued behind {event.turn_queued.ahead}", "dim")

    def _started(self, event: v1.Event) -> None:
        started = event.turn_started
        self._wrote_text = False
        self._tools.clear()
        if started.agent != self._agent:
            self.line(f"{started.agent or 'the default agent'} answers", "dim")
            self._agent = started.agent
        if started.attempt > 1:
            self.line(f"attempt {started.attempt}", "dim")

    def _text(self, event: v1.Event) -> None:
        nested = bool(event.parent_tool_use_id)
        self._wrote_text = self._wrote_text or not nested
        self._delta(event, event.text.text, "dim" if nested else "")

    def _reasoning(self, event: v1.Event) -> None:
        self._delta(event, event.reasoning.text, "dim italic")

    def _tool_use(self, event: v1.Event) -> None:
        tool = event.tool_use
        indent = "  " if event.parent_tool_use_id else ""
        width = max(self.console.width - len(indent) - len(tool.name) - 4, 20)
        self._tools[tool.tool_use_id] = tool.name
        self.line(f"{indent}> {tool.name} {short_input(tool.input, width)}", "cyan")

    def _tool_result(self, event: v1.Event) -> None:
        result = event.tool_result
        indent = "    " if event.parent_tool_use_id else "  "
        mark, style = _OUTCOMES.get(result.outcome, ("", "dim"))
        name = self._tools.pop(result.tool_use_id, "")
        # With several calls at once, the order does not say whose result it is.
        whose = f"{name}: " if self._tools and name else ""
        text = shorten(result.output, max(self.console.width - len(indent) - len(mark) - len(whose) - 1, 20))
        self.line(f"{indent}{mark}{whose}{text or '(no output)'}", style)

    def _input_required(self, event: v1.Event) -> None:
        if not self.asks:
            self.request(event.input_required.input_request)

    def _input_resolved(self, event: v1.Event) -> None:
        resolved = event.input_resolved
        by = f" by {resolved.responder}" if resolved.responder else ""
        self.line(f"  {_resolution(resolved)}{by}", "dim")

    def _retrying(self, event: v1.Event) -> None:
        retry = event.retrying
        of = f" of {retry.max_attempts}" if retry.max_attempts else ""
        wait = f" in {retry.delay.ToMilliseconds() / 1000:.1f} s" if retry.HasField("delay") else ""
        why = f": {error_line(retry.error)}" if retry.HasField("error") else ""
        self.line(f"! attempt {retry.attempt}{of}{wait}{why}", "yellow")

    def _error(self, event: v1.Event) -> None:
        self.line(f"! {error_line(event.error)}", "red")

    def _notice(self, event: v1.Event) -> None:
        notice = event.harness_notice
        self.line(f"! {notice.topic}: {notice.text}" if notice.text else f"! {notice.topic}", "yellow")

    def _completed(self, event: v1.Event) -> None:
        if not self._wrote_text:
            self.line(event.message_completed.text)

    def _finished(self, event: v1.Event) -> None:
        finished = event.turn_finished
        if finished.state != v1.TURN_STATE_COMPLETED:
            state = v1.TurnState.Name(finished.state).removeprefix("TURN_STATE_").lower()
            why = error_line(finished.error) if finished.HasField("error") else finished.state_reason
            self.line(f"{state}: {why}" if why else state, "yellow" if "cancel" in state else "red")
        if finished.HasField("usage"):
            self.line(usage_line(finished.usage), "dim")
        self.end_line()

    def _handoff(self, event: v1.Event) -> None:
        handoff = event.agent_handoff
        self._agent = handoff.to_agent
        default = "the default agent"
        self.line(f"handoff from {handoff.from_agent or default} to {handoff.to_agent or default}", "magenta")

    def _joined(self, event: v1.Event) -> None:
        participant = event.participant_joined.participant
        role = v1.ParticipantRole.Name(participant.role).removeprefix("PARTICIPANT_ROLE_").lower()
        self.line(f"{participant.display_name or participant.participant_id} is here ({role})", "magenta")

    def _left(self, event: v1.Event) -> None:
        self.line(f"{event.participant_left.participant_id} left", "magenta")

    _HANDLERS: ClassVar[dict[str, Callable[["Renderer", v1.Event], None]]] = {
        "message_received": _message,
        "turn_queued": _queued,
        "turn_started": _started,
        "text": _text,
        "reasoning": _reasoning,
        "tool_use": _tool_use,
        "tool_result": _tool_result,
        "input_required": _input_required,
        "input_resolved": _input_resolved,
        "retrying": _retrying,
        "error": _error,
        "message_completed": _completed,
        "turn_finished": _finished,
        "agent_handoff": _handoff,
        "participant_joined": _joined,
        "participant_left": _left,
        "harness_notice": _notice,
    }


def _resolution(resolved: v1.InputResolved) -> str:
    match resolved.response.WhichOneof("choice"):
        case "allow":
            allow = resolved.response.allow
            scope = "for the session" if allow.scope == v1.ALLOW_SCOPE_SESSION else "once"
            changed = f", with {visible(allow.updated_input)}" if allow.HasField("updated_input") else ""
            return f"allowed {scope}{changed}"
        case "deny":
            message = resolved.response.deny.message
            return f"denied: {message}" if message else "denied"
        case "answers":
            return "answered"
    return "no longer asked"


_OUTCOMES = {
    v1.TOOL_OUTCOME_DONE: ("", "dim"),
    v1.TOOL_OUTCOME_FAILED: ("failed: ", "red"),
    v1.TOOL_OUTCOME_UNKNOWN: ("outcome unknown: ", "yellow"),
}
