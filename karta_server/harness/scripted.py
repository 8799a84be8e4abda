"""A deterministic harness without a process or a model, for tests and benchmarks.

The prompt carries the script, in the grammar of karta_server/testing/script.py;
without one the answer is `echo[n]: <prompt>`, n counting the conversation's
turns. Every tool asks for permission but `Read`; `AskUserQuestion` asks its
questions. A tool does nothing but say what it was called with.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

import frontmatter

from karta import v1
from karta_server.errors import KartaError
from karta_server.harness.contract import HarnessAdapter, HarnessSession, Prompt
from karta_server.testing.script import find_script

_UNASKED = frozenset({"Read"})
_REASONS = {
    401: v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED,
    413: v1.ERROR_REASON_PROMPT_TOO_LONG,
    429: v1.ERROR_REASON_MODEL_RATE_LIMITED,
}
_PIECE = re.compile(r"\s*\S+|\s+\Z")


class ScriptedAdapter(HarnessAdapter):
    """The harness `scripted`: always there, never chosen by itself."""

    name: ClassVar[str] = "scripted"

    async def describe(self) -> v1.Harness:
        """Return what it can do."""
        capabilities = v1.HarnessCapabilities(
            deltas=True,
            interrupt=True,
            approvals=True,
            updated_input=True,
            deny_message=True,
            questions=True,
            agents=True,
            resume=True,
        )
        return v1.Harness(name=self.name, version="1", available=True, capabilities=capabilities)

    async def agents(self) -> list[v1.Agent]:
        """Return the agents of `.scripted/agents/*.md`."""
        folder = self.settings.project / ".scripted" / "agents"
        return [_agent(path.stem, path.read_text()) for path in sorted(folder.glob("*.md"))]

    async def open(self, session_id: str, memory: bytes) -> HarnessSession:
        """Begin a conversation or go on with one."""
        return ScriptedSession(memory)


class ScriptedSession(HarnessSession):
    """A conversation: how many turns it had, and which tools may run."""

    def __init__(self, memory: bytes) -> None:
        self._turns: int = json.loads(memory)["turns"] if memory else 0
        self._allowed: set[str] = set()
        self._answers: dict[str, asyncio.Future[v1.InputRequest]] = {}
        self._stop = asyncio.Event()
        self._usage = v1.Usage()

    @property
    def memory(self) -> bytes:
        return json.dumps({"turns": self._turns}).encode()

    async def run_turn(self, prompt: Prompt) -> AsyncGenerator[v1.Event, None]:
        self._turns += 1
        self._stop = asyncio.Event()
        self._usage = v1.Usage()
        agent = f"{prompt.agent}: " if prompt.agent else ""
        script = _script(prompt.text) or [[{"text": f"{agent}echo[{self._turns}]: {prompt.text}"}]]
        text = ""
        for number, blocks in enumerate(script, start=1):
            yield v1.Event(step=number, step_start=v1.StepStart(model="scripted"))
            used = v1.Usage(input_tokens=len(prompt.text.split()))
            text = ""
            for index, block in enumerate(blocks):
                text += block.get("text", "")
                used.output_tokens += len(str(block.get("text", block.get("think", ""))).split())
                async for event in self._block(block, f"{number}.{index}"):
                    event.step = number
                    yield event
                if self._stop.is_set():
                    yield _finished(v1.TURN_STATE_CANCELLED, self._usage)
                    return
            self._usage.input_tokens += used.input_tokens
            self._usage.output_tokens += used.output_tokens
            yield v1.Event(step=number, step_finish=v1.StepFinish(usage=used, reason=_reason(blocks)))
            if error := _error(blocks):
                yield v1.Event(turn_finished=v1.TurnFinished(state=v1.TURN_STATE_FAILED, error=error))
                return
        yield v1.Event(message_completed=v1.MessageCompleted(text=text))
        yield _finished(v1.TURN_STATE_COMPLETED, self._usage)

    async def answer(self, input_request: v1.InputRequest) -> None:
        waiting = self._answers.pop(input_request.tool_use_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(input_request)

    async def interrupt(self) -> None:
        self._stop.set()
        for waiting in self._answers.values():
            waiting.cancel()

    async def close(self) -> None:
        await self.interrupt()

    async def _block(self, block: dict[str, Any], part_id: str) -> AsyncGenerator[v1.Event, None]:
        if "text" in block or "think" in block:
            said: str = block.get("text") or block.get("think", "")
            for piece in _PIECE.findall(said):
                if not await self._pause(block.get("pace", 0)):
                    return
                event = v1.Event(part_id=part_id)
                if "text" in block:
                    event.text.text = piece
                else:
                    event.reasoning.text = piece
                yield event
        elif "tool" in block:
            async for event in self._tool(block["tool"], block.get("input", {}), f"tool-{self._turns}.{part_id}"):
                yield event
        elif "delay" in block:
            await self._pause(block["delay"])
        elif block.get("drop"):
            raise KartaError(v1.ERROR_REASON_HARNESS_CRASHED, "The script dropped the connection.", harness="scripted")

    async def _tool(self, name: str, tool_input: dict[str, Any], tool_use_id: str) -> AsyncGenerator[v1.Event, None]:
        text = json.dumps(tool_input)
        yield v1.Event(tool_use=v1.ToolUse(tool_use_id=tool_use_id, name=name, input=text))
        result = v1.ToolResult(tool_use_id=tool_use_id, outcome=v1.TOOL_OUTCOME_DONE, output=f"{name} {text}")
        if name not in _UNASKED and name not in self._allowed:
            request = _input_request(tool_use_id, name, text, tool_input)
            self._answers[tool_use_id] = asyncio.get_running_loop().create_future()
            waiting = self._answers[tool_use_id]
            yield v1.Event(source=v1.EVENT_SOURCE_HARNESS, input_required=v1.InputRequired(input_request=request))
            await asyncio.wait({waiting})
            if waiting.cancelled():
                return
            self._apply(waiting.result(), result)
        yield v1.Event(source=v1.EVENT_SOURCE_HARNESS, tool_result=result)

    def _apply(self, answered: v1.InputRequest, result: v1.ToolResult) -> None:
        response = answered.response
        if response.HasField("allow"):
            if response.allow.scope == v1.ALLOW_SCOPE_SESSION:
                self._allowed.add(answered.tool_name)
            if response.allow.HasField("updated_input"):
                result.output = f"{answered.tool_name} {response.allow.updated_input}"
        elif response.HasField("answers"):
            chosen = response.answers.by_question
            result.output = json.dumps({question: list(chosen[question].labels) for question in sorted(chosen)})
        else:
            result.outcome = v1.TOOL_OUTCOME_FAILED
            result.output = response.deny.message or "The user did not allow this."
            if response.deny.interrupt:
                self._stop.set()

    async def _pause(self, seconds: float) -> bool:
        """Wait, and return whether the turn is to go on."""
        if seconds:
            try:
                async with asyncio.timeout(seconds):
                    await self._stop.wait()
            except TimeoutError:
                pass
        return not self._stop.is_set()


def _script(text: str) -> list[list[dict[str, Any]]] | None:
    try:
        return find_script(text)
    except ValueError as error:
        raise KartaError(v1.ERROR_REASON_HARNESS_FAILED, f"The script is wrong: {error}", harness="scripted") from None


def _input_request(tool_use_id: str, name: str, text: str, tool_input: dict[str, Any]) -> v1.InputRequest:
    request = v1.InputRequest(tool_use_id=tool_use_id, tool_name=name, tool_input=text)
    if name == "AskUserQuestion":
        request.kind = v1.INPUT_KIND_QUESTION
        request.title = "The agent has a question"
        request.options.extend([v1.INPUT_OPTION_ANSWER, v1.INPUT_OPTION_DENY])
        for asked in tool_input.get("questions", []):
            options = [v1.QuestionOption(**option) for option in asked.get("options", [])]
            multi_select = bool(asked.get("multiSelect"))
            request.questions.add(question=asked["question"], multi_select=multi_select, options=options)
        return request
    request.kind = v1.INPUT_KIND_TOOL_PERMISSION
    request.title = f"Allow {name}?"
    request.options.extend(
        [
            v1.INPUT_OPTION_ALLOW_ONCE,
            v1.INPUT_OPTION_ALLOW_SESSION,
            v1.INPUT_OPTION_ALLOW_UPDATED,
            v1.INPUT_OPTION_DENY,
        ]
    )
    return request


def _reason(blocks: list[dict[str, Any]]) -> str:
    return "tool_use" if any("tool" in block for block in blocks) else "end_turn"


def _error(blocks: list[dict[str, Any]]) -> v1.Error | None:
    for block in blocks:
        if "error" in block:
            reason = _REASONS.get(block["error"], v1.ERROR_REASON_MODEL_UNAVAILABLE)
            return v1.Error(reason=reason, message=block.get("message", f"The script failed with {block['error']}."))
    return None


def _finished(state: v1.TurnState.ValueType, usage: v1.Usage) -> v1.Event:
    return v1.Event(turn_finished=v1.TurnFinished(state=state, usage=usage))


def _agent(name: str, text: str) -> v1.Agent:
    post = frontmatter.loads(text)
    return v1.Agent(
        name=str(post.get("name", name)),
        description=str(post.get("description", "")),
        harness="scripted",
        path=f".scripted/agents/{name}.md",
        frontmatter=json.dumps(post.metadata, default=str),
    )
