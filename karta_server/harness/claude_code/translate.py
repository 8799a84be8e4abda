"""From Claude Code's messages to Karta's events, one translator for each turn."""

import json
from collections.abc import Iterator
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    Message,
    RateLimitEvent,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from google.protobuf.duration_pb2 import Duration

from karta import v1
from karta_server.error_codes import to_error
from karta_server.harness.claude_code.failures import model_failure, turn_failure
from karta_server.harness.claude_code.usage import CostMeter, to_usage

_AGENT_TOOLS = ("Agent", "Task")
_NOTICES = {
    "compact_boundary": "The conversation was compacted.",
    "permission_denied": "A tool call was denied.",
    "informational": "",
    "local_command_output": "",
}
"""The system messages that people want to see, and what they say when they have no text."""


class Translator:
    """Translates the messages of one turn; `finished` once its last event was made."""

    def __init__(self, agent: str, cost: CostMeter) -> None:
        self.finished = False
        self._agent = agent
        self._cost = cost
        self._step = 0
        self._part = 0
        self._step_usage: dict[str, Any] = {}
        self._stop_reason = ""
        self._streamed: set[str | None] = set()
        self._last_message: str | None = None
        self._text = ""
        self._failure_kind = ""
        self._announced: set[str] = set()
        self._subagents: dict[str, str] = {}

    def events(self, message: Message) -> Iterator[v1.Event]:
        """Yield what a message means, in order; nothing for what has no meaning to a client."""
        if isinstance(message, StreamEvent):
            # Whole messages of subagents come besides; only the agent itself streams.
            if message.parent_tool_use_id is None:
                yield from self._stream(message.event)
        elif isinstance(message, AssistantMessage):
            yield from self._assistant(message)
        elif isinstance(message, UserMessage):
            yield from self._user(message)
        elif isinstance(message, ResultMessage):
            yield from self._result(message)
        elif isinstance(message, RateLimitEvent):
            if message.rate_limit_info.status != "allowed":
                yield self._notice("rate_limit", f"The provider's rate limit: {message.rate_limit_info.status}.")
        elif isinstance(message, SystemMessage):
            yield from self._system(message.subtype, message.data)

    def input_required(self, request: v1.InputRequest) -> Iterator[v1.Event]:
        """Yield that a tool asks, after the tool call itself."""
        yield from self._tool_use(request.tool_use_id, request.tool_name, request.tool_input, "")
        yield self._event("", source=v1.EVENT_SOURCE_HARNESS, input_required=v1.InputRequired(input_request=request))

    def notice(self, topic: str, text: str) -> v1.Event:
        """Return something that the harness tells about itself."""
        return self._notice(topic, text)

    def finish(self, state: v1.TurnState.ValueType, error: v1.Error | None = None) -> v1.Event:
        """Return the last event of a turn that ends without a result."""
        self.finished = True
        return self._outside(turn_finished=v1.TurnFinished(state=state, error=error, usage=v1.Usage()))

    def _stream(self, event: dict[str, Any]) -> Iterator[v1.Event]:
        kind = event["type"]
        if kind == "message_start":
            self._step += 1
            self._streamed.add(event["message"].get("id"))
            yield self._event("", step_start=v1.StepStart(model=event["message"].get("model", "")))
        elif kind == "content_block_start":
            self._part += 1
        elif kind == "content_block_delta":
            yield from self._delta(event["delta"])
        elif kind == "message_delta":
            self._step_usage = event.get("usage") or {}
            self._stop_reason = event["delta"].get("stop_reason") or ""
        elif kind == "message_stop":
            finish = v1.StepFinish(usage=to_usage(self._step_usage), reason=self._stop_reason)
            yield self._event("", step_finish=finish)

    def _delta(self, delta: dict[str, Any]) -> Iterator[v1.Event]:
        part = str(self._part)
        if delta["type"] == "text_delta" and delta["text"]:
            yield self._event("", part_id=part, text=v1.TextDelta(text=delta["text"]))
        elif delta["type"] == "thinking_delta" and delta["thinking"]:
            yield self._event("", part_id=part, reasoning=v1.ReasoningDelta(text=delta["thinking"]))

    def _assistant(self, message: AssistantMessage) -> Iterator[v1.Event]:
        parent = message.parent_tool_use_id or ""
        if message.error is not None and not parent:
            # The text of a failed call is no message of the agent; the result says what failed.
            self._failure_kind = message.error
            return
        for block in message.content:
            if isinstance(block, ToolUseBlock):
                if block.name in _AGENT_TOOLS:
                    self._subagents[block.id] = str(block.input.get("subagent_type", ""))
                yield from self._tool_use(block.id, block.name, to_json(block.input), parent)
            elif isinstance(block, TextBlock | ThinkingBlock):
                yield from self._whole_block(block, message.message_id, parent)
        if not parent:
            self._keep_text(message)

    def _whole_block(self, block: TextBlock | ThinkingBlock, message_id: str | None, parent: str) -> Iterator[v1.Event]:
        if message_id in self._streamed:
            return
        self._part += 1
        part = str(self._part)
        if isinstance(block, TextBlock):
            yield self._event(parent, part_id=part, text=v1.TextDelta(text=block.text))
        else:
            yield self._event(parent, part_id=part, reasoning=v1.ReasoningDelta(text=block.thinking))

    def _keep_text(self, message: AssistantMessage) -> None:
        """Remember the text of the last message; each of its blocks comes as a message of its own."""
        if message.message_id != self._last_message:
            self._last_message, self._text = message.message_id, ""
        self._text += "".join(block.text for block in message.content if isinstance(block, TextBlock))

    def _tool_use(self, tool_use_id: str, name: str, tool_input: str, parent: str) -> Iterator[v1.Event]:
        if tool_use_id not in self._announced:
            self._announced.add(tool_use_id)
            yield self._event(parent, tool_use=v1.ToolUse(tool_use_id=tool_use_id, name=name, input=tool_input))

    def _user(self, message: UserMessage) -> Iterator[v1.Event]:
        for block in message.content if isinstance(message.content, list) else []:
            if isinstance(block, ToolResultBlock):
                outcome = v1.TOOL_OUTCOME_FAILED if block.is_error else v1.TOOL_OUTCOME_DONE
                output = _plain(block.content)
                result = v1.ToolResult(tool_use_id=block.tool_use_id, outcome=outcome, output=output)
                yield self._event(message.parent_tool_use_id or "", source=v1.EVENT_SOURCE_HARNESS, tool_result=result)

    def _system(self, subtype: str, data: dict[str, Any]) -> Iterator[v1.Event]:
        if subtype == "api_retry":
            yield self._retrying(data)
        elif subtype == "status" and data.get("status") == "compacting":
            yield self._notice("compacting", "The conversation is being compacted.")
        elif subtype in _NOTICES:
            text = data.get("content") or data.get("message") or _NOTICES[subtype]
            yield self._notice(subtype, text if isinstance(text, str) else to_json(text))

    def _retrying(self, data: dict[str, Any]) -> v1.Event:
        status = data.get("error_status")
        kind = str(data.get("error") or "unknown")
        text = f"The model call failed: {kind}" + (f" (HTTP {status})." if status else ".")
        retrying = v1.Retrying(
            attempt=int(data.get("attempt", 1)) + 1,
            max_attempts=int(data.get("max_retries", -1)) + 1,
            error=to_error(model_failure(kind, status if isinstance(status, int) else None, text)),
        )
        delay = Duration()
        delay.FromMilliseconds(round(data.get("retry_delay_ms") or 0))
        retrying.delay.CopyFrom(delay)
        return self._event("", source=v1.EVENT_SOURCE_HARNESS, may_ignore=True, retrying=retrying)

    def _notice(self, topic: str, text: str) -> v1.Event:
        notice = v1.HarnessNotice(topic=topic, text=text)
        return self._event("", source=v1.EVENT_SOURCE_HARNESS, may_ignore=True, harness_notice=notice)

    def _result(self, result: ResultMessage) -> Iterator[v1.Event]:
        finished = v1.TurnFinished(state=v1.TURN_STATE_COMPLETED, usage=to_usage(result.usage))
        cost = self._cost.charge(result.total_cost_usd)
        if cost is not None:
            finished.usage.cost_usd_micros = cost
        if (result.terminal_reason or "").startswith("aborted"):
            finished.state = v1.TURN_STATE_CANCELLED
        elif result.is_error:
            finished.state = v1.TURN_STATE_FAILED
            finished.error.CopyFrom(to_error(turn_failure(result, self._failure_kind)))
            yield self._outside(error=finished.error)
        else:
            text = self._text or result.result or ""
            yield self._outside(source=v1.EVENT_SOURCE_AGENT, message_completed=v1.MessageCompleted(text=text))
        self.finished = True
        yield self._outside(turn_finished=finished)

    def _event(self, parent: str, *, source: v1.EventSource.ValueType = v1.EVENT_SOURCE_AGENT, **kind: Any) -> v1.Event:
        actor = self._subagents.get(parent, self._agent) if source == v1.EVENT_SOURCE_AGENT else ""
        return v1.Event(source=source, actor=actor, step=self._step, parent_tool_use_id=parent, **kind)

    def _outside(self, *, source: v1.EventSource.ValueType = v1.EVENT_SOURCE_HARNESS, **kind: Any) -> v1.Event:
        """Return an event that belongs to no model call."""
        return v1.Event(source=source, actor=self._agent if source == v1.EVENT_SOURCE_AGENT else "", **kind)


def to_json(value: Any) -> str:
    """Return a value of a message as JSON text."""
    return json.dumps(value, ensure_ascii=False)


def _plain(content: str | list[dict[str, Any]] | None) -> str:
    """Return what a tool gave as text; what is no text is named."""
    if isinstance(content, str):
        return content
    return "\n".join(
        str(block["text"]) if block.get("type") == "text" else f"[{block.get('type', 'unknown')}]"
        for block in content or []
    )
