"""Who decides whether a tool may run: the people that Karta asks, and nobody else."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny, ToolPermissionContext

from karta import v1
from karta_server.harness.claude_code.translate import to_json

MAX_WAITING = 256
MAX_TITLE_CHARACTERS = 200
QUESTION_TOOL = "AskUserQuestion"

_PERMISSION_OPTIONS = (
    v1.INPUT_OPTION_ALLOW_ONCE,
    v1.INPUT_OPTION_ALLOW_SESSION,
    v1.INPUT_OPTION_ALLOW_UPDATED,
    v1.INPUT_OPTION_DENY,
)
_QUESTION_OPTIONS = (v1.INPUT_OPTION_ANSWER, v1.INPUT_OPTION_DENY)

_NOBODY = "Nobody can be asked now, so this was not run."

_log = logging.getLogger(__name__)

Decision = PermissionResultAllow | PermissionResultDeny
Ask = Callable[[v1.InputRequest], Awaitable[None]]


class Approvals:
    """The decisions of one process of Claude Code. Whatever goes wrong is a denial."""

    def __init__(self) -> None:
        self._ask: Ask | None = None
        self._allowed: set[str] = set()
        self._waiting: dict[str, asyncio.Future[v1.InputResponse]] = {}
        self._is_ours: Callable[[], bool] = lambda: False
        self._stopped = False

    def begin_turn(self, ask: Ask, is_ours: Callable[[], bool]) -> None:
        """From here on requests go to `ask`. Permissions for the session hold only while `is_ours` says that
        Claude Code works on the turn, and not on something of its own."""
        self._ask = ask
        self._is_ours = is_ours
        self._stopped = False

    def end_turn(self) -> None:
        """Deny what waits, and what comes until the next turn begins."""
        self._ask = None
        self.deny_all()

    def deny_all(self) -> None:
        """Deny whatever waits, and what comes until the next turn, so that this one ends."""
        self._stopped = True
        stopped = v1.InputResponse(deny=v1.Deny(message="The turn was stopped.", interrupt=True))
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(stopped)

    def answer(self, request: v1.InputRequest) -> None:
        """Take the answer to a request; one that nothing waits for is dropped."""
        waiting = self._waiting.get(request.tool_use_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(request.response)

    def refuse(self, request: v1.InputRequest) -> None:
        """Deny a request that belongs to no turn: of work that goes on behind the conversation."""
        denied = v1.InputResponse(deny=v1.Deny(message=_NOBODY))
        self.answer(v1.InputRequest(tool_use_id=request.tool_use_id, response=denied))

    async def decide(self, tool: str, tool_input: dict[str, Any], context: ToolPermissionContext) -> Decision:
        """Decide about a tool call; this is the SDK's `can_use_tool`."""
        if self._ask is None or self._stopped or not context.tool_use_id:
            return PermissionResultDeny(message=_NOBODY)
        if tool in self._allowed and self._is_ours():
            return PermissionResultAllow(updated_input=tool_input)
        try:
            response = await self._wait(self._ask, to_request(tool, tool_input, context), context.tool_use_id)
            return self._decision(tool, tool_input, response)
        except Exception:
            _log.exception("deciding about %s failed, so it is denied", tool)
            return PermissionResultDeny(message="The permission request failed, so this was not run.")

    async def _wait(self, ask: Ask, request: v1.InputRequest, tool_use_id: str) -> v1.InputResponse:
        if len(self._waiting) >= MAX_WAITING:
            raise RuntimeError(f"more than {MAX_WAITING} tool calls wait for an answer")
        waiting: asyncio.Future[v1.InputResponse] = asyncio.get_running_loop().create_future()
        self._waiting[tool_use_id] = waiting
        try:
            await ask(request)
            return await waiting
        finally:
            del self._waiting[tool_use_id]

    def _decision(self, tool: str, tool_input: dict[str, Any], response: v1.InputResponse) -> Decision:
        kind = response.WhichOneof("choice")
        if kind == "answers" and tool == QUESTION_TOOL:
            answers = {text: ", ".join(answer.labels) for text, answer in response.answers.by_question.items()}
            return PermissionResultAllow(updated_input={**tool_input, "answers": answers})
        if kind == "allow" and tool != QUESTION_TOOL:
            return self._allow(tool, tool_input, response.allow)
        message = response.deny.message or "The user did not allow this."
        return PermissionResultDeny(message=message, interrupt=response.deny.interrupt)

    def _allow(self, tool: str, tool_input: dict[str, Any], allow: v1.Allow) -> Decision:
        if allow.HasField("updated_input"):
            tool_input = json.loads(allow.updated_input)
            if not isinstance(tool_input, dict):
                raise ValueError("the updated input is not a JSON object")
        if allow.scope == v1.ALLOW_SCOPE_SESSION:
            # Kept here and nowhere else: what the SDK suggests would be written into the user's settings.
            self._allowed.add(tool)
        return PermissionResultAllow(updated_input=tool_input)


def to_request(tool: str, tool_input: dict[str, Any], context: ToolPermissionContext) -> v1.InputRequest:
    """Return what is asked about a tool call."""
    request = v1.InputRequest(
        kind=v1.INPUT_KIND_TOOL_PERMISSION,
        title=_title(context.title or f"{context.display_name or tool}: {context.description or to_json(tool_input)}"),
        tool_use_id=context.tool_use_id or "",
        tool_name=tool,
        tool_input=to_json(tool_input),
        options=_PERMISSION_OPTIONS,
    )
    if tool == QUESTION_TOOL:
        request.kind = v1.INPUT_KIND_QUESTION
        request.options[:] = _QUESTION_OPTIONS
        request.questions.extend(_question(question) for question in tool_input["questions"])
        request.title = _title(request.questions[0].question)
    return request


def _question(question: dict[str, Any]) -> v1.Question:
    options = [
        v1.QuestionOption(label=option["label"], description=option.get("description") or "")
        for option in question.get("options") or []
    ]
    return v1.Question(
        question=question["question"],
        header=question.get("header") or "",
        multi_select=bool(question.get("multiSelect")),
        options=options,
    )


def _title(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TITLE_CHARACTERS else f"{line[: MAX_TITLE_CHARACTERS - 1]}…"
