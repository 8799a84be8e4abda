"""Asking a person: where lines come from, and how an approval or a question becomes an answer."""

import asyncio
import json
import os
import stat
import sys
import termios
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karta import v1
from karta_client.cleaning import clean, visible
from karta_client.commands.exits import USAGE, CommandError
from karta_client.terminal import Renderer

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer

MAX_LINE_BYTES = 1 << 20


Prompt = str | Callable[[], str]
"""What is shown in front of a line; a function is asked again whenever the prompt is drawn anew."""


class CtrlCError(Exception):
    """Ctrl-C at a prompt. No KeyboardInterrupt: that would tear down the event loop on its way."""


class Lines(ABC):
    """Where a person's lines come from."""

    @abstractmethod
    async def read(self, prompt: Prompt, *, default: str = "", record: bool = False) -> str:
        """Return the next line without its end.

        `default` is text to begin with; where it cannot be edited, an empty
        line means it. `record` keeps the line in the history. Raises EOFError
        at the end and CtrlCError for Ctrl-C.
        """

    def close(self) -> None:
        """Let go of the input; idempotent."""
        return


class TerminalLines(Lines):
    """Lines typed at a terminal, with editing, history and completion; output appears above the prompt."""

    def __init__(
        self, *, history: Path | None = None, completer: "Completer | None" = None, stderr: bool = False
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory
        from prompt_toolkit.output import create_output

        output = create_output(stdout=sys.stderr) if stderr else None
        self._main: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)) if history else None,
            completer=completer,
            output=output,
            interrupt_exception=CtrlCError,
        )
        self._answers: PromptSession[str] = PromptSession(
            output=output, enable_open_in_editor=True, interrupt_exception=CtrlCError
        )

    async def read(self, prompt: Prompt, *, default: str = "", record: bool = False) -> str:
        """Ask with a prompt."""
        from prompt_toolkit.patch_stdout import patch_stdout

        session = self._main if record else self._answers
        if not record:
            _forget_typed(session)
        with patch_stdout(raw=True):
            return await session.prompt_async(prompt, default=default, handle_sigint=False)


def _forget_typed(session: "PromptSession[str]") -> None:
    """Drop what was typed before a question was shown: nobody meant it as the answer."""
    from prompt_toolkit.input.typeahead import clear_typeahead

    clear_typeahead(session.app.input)
    termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


class StreamLines(Lines):
    """Lines of a pipe or a file, for scripts. Questions and answers are written, so that the output is a transcript."""

    def __init__(self) -> None:
        self._reader: asyncio.StreamReader | None = None
        self._transport: asyncio.ReadTransport | None = None

    async def read(self, prompt: Prompt, *, default: str = "", record: bool = False) -> str:
        """Take the next line."""
        raw = await self._next()
        if not raw:
            raise EOFError
        text = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not record:
            sys.stdout.write(f"{prompt() if callable(prompt) else prompt}{clean(text)}\n")
            sys.stdout.flush()
        return text or default

    async def _next(self) -> bytes:
        if self._reader is None and _is_pipe():
            self._reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
            protocol = asyncio.StreamReaderProtocol(self._reader)
            # A copy of the descriptor: closing the transport must not close stdin under Python.
            pipe = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        if self._reader is not None:
            try:
                return await self._reader.readline()
            except ValueError:
                raise CommandError(USAGE, "LINE_TOO_LONG", f"a line may have {MAX_LINE_BYTES} bytes") from None
        # A file answers at once.
        return sys.stdin.readline(MAX_LINE_BYTES).encode()

    def close(self) -> None:
        if self._transport:
            self._transport.close()


def _is_pipe() -> bool:
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


async def ask(request: v1.InputRequest, lines: Lines, renderer: Renderer) -> v1.InputResponse:
    """Show an input request to a person and ask for the answer, until it is one that the request takes."""
    renderer.request(request)
    if request.kind == v1.INPUT_KIND_QUESTION:
        answers = {question.question: await _question(question, lines, renderer) for question in request.questions}
        return v1.InputResponse(answers=v1.Answers(by_question=answers))
    return await _permission(request, lines, renderer)


_KEYS = {
    v1.INPUT_OPTION_ALLOW_ONCE: ("y", "y allow once"),
    v1.INPUT_OPTION_ALLOW_SESSION: ("s", "s allow for the session"),
    v1.INPUT_OPTION_ALLOW_UPDATED: ("e", "e edit the input"),
    v1.INPUT_OPTION_DENY: ("n", "n deny"),
}


async def _permission(request: v1.InputRequest, lines: Lines, renderer: Renderer) -> v1.InputResponse:
    choices = [_KEYS[option] for option in request.options if option in _KEYS]
    prompt = f"Allow {visible(request.tool_name)}? [{', '.join(text for _, text in choices)}] "
    keys = {key for key, _ in choices}
    while True:
        typed = (await lines.read(prompt)).strip()
        key, _, rest = typed.partition(" ")
        key = {"yes": "y", "no": "n"}.get(key.lower(), key.lower())
        # "yes, but ..." is not a yes.
        if key not in keys or (rest and key != "n"):
            renderer.line(f"Type one of: {' '.join(sorted(keys))}", "yellow")
        elif key == "n":
            message = rest.strip() or (await lines.read("What to tell the agent (may be empty): ")).strip()
            return v1.InputResponse(deny=v1.Deny(message=message))
        elif key == "e":
            if (edited := await _edited(request.tool_input, lines, renderer)) is not None:
                return v1.InputResponse(allow=v1.Allow(scope=v1.ALLOW_SCOPE_ONCE, updated_input=edited))
        else:
            scope = v1.ALLOW_SCOPE_ONCE if key == "y" else v1.ALLOW_SCOPE_SESSION
            return v1.InputResponse(allow=v1.Allow(scope=scope))


async def _edited(tool_input: str, lines: Lines, renderer: Renderer) -> str | None:
    try:
        # In one line; escapes in its strings mean the same.
        tool_input = json.dumps(json.loads(tool_input), ensure_ascii=False)
    except ValueError:
        renderer.line("The input was cut or is not JSON: type it anew.", "yellow")
    typed = await lines.read("Input as JSON: ", default=visible(tool_input))
    if (problem := not_an_object(typed)) is None:
        return typed
    renderer.line(f"That is not a JSON object: {problem}", "yellow")
    return None


def not_an_object(text: str) -> str | None:
    """Return why the text is not a JSON object; None when it is one."""
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        return str(error)
    return None if isinstance(document, dict) else f"it is a {type(document).__name__}"


async def _question(question: v1.Question, lines: Lines, renderer: Renderer) -> v1.Answer:
    header = f"{question.header}: " if question.header else ""
    renderer.line(f"{header}{question.question}", "bold")
    for number, option in enumerate(question.options, 1):
        renderer.line(f"  {number} {option.label}" + (f" - {option.description}" if option.description else ""))
    how = "numbers, or your own words" if question.multi_select else "a number, or your own words"
    prompt = f"Answer ({how}): " if question.options else "Answer: "
    while True:
        labels = chosen(question, (await lines.read(prompt)).strip())
        if labels:
            return v1.Answer(labels=labels)
        renderer.line(f"Type {how}.", "yellow")


def chosen(question: v1.Question, typed: str) -> list[str]:
    """Return the labels that the typed text means: option numbers, or free text; empty when it means nothing."""
    words = typed.replace(",", " ").split()
    if not words:
        return []
    if not question.options or not all(word.isdecimal() for word in words):
        return [typed]
    numbers = [int(word) for word in dict.fromkeys(words)]
    if not all(1 <= number <= len(question.options) for number in numbers):
        return []
    if len(numbers) > 1 and not question.multi_select:
        return []
    return [question.options[number - 1].label for number in numbers]
