"""A process of Claude Code and the task that owns it."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, Message, ResultMessage

from karta import v1
from karta_server.errors import KartaError
from karta_server.harness.claude_code.failures import crashed, start_failed

MAX_INBOX = 1000
MAX_COMMANDS = 16
MAX_STDERR_LINES = 20
MAX_STDERR_CHARACTERS = 500
INTERRUPT_SECONDS = 10.0
CLOSE_INTERRUPT_SECONDS = 2.0

_log = logging.getLogger(__name__)

Inbox = asyncio.Queue[Message | v1.InputRequest | None]
"""What a turn reads: messages, questions, and None when the process has ended."""

_Action = Callable[[ClaudeSDKClient], Awaitable[None]]
_Command = tuple[_Action, asyncio.Future[None]]


class ClaudeProcess:
    """A running Claude Code, from `start` to `close`.

    One task owns the SDK's client: it connects, sends, interrupts and
    disconnects, and its only child reads. Everybody else talks to it by queues.
    """

    def __init__(self, options: ClaudeAgentOptions, start_seconds: float) -> None:
        self.agents: list[str] = []
        """The names of the agents that it knows, once started; empty when it does not tell."""
        self.stderr: deque[str] = deque(maxlen=MAX_STDERR_LINES)
        self._options = replace(options, stderr=self._keep_stderr)
        self._start_seconds = start_seconds
        self._commands: asyncio.Queue[_Command] = asyncio.Queue(MAX_COMMANDS)
        self._inbox: Inbox | None = None
        self._owner: asyncio.Task[None] | None = None
        self._leaving = False
        self._is_busy = False
        self._failure: Exception | None = None

    @property
    def alive(self) -> bool:
        """Whether it can take a prompt."""
        return self._owner is not None and not self._leaving and not self._owner.done()

    async def start(self) -> None:
        """Start the process; raises KartaError HARNESS_START_FAILED."""
        ready = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own(ready), name="own Claude Code")
        await ready

    def attach(self, inbox: Inbox) -> None:
        """Give all that comes from here on to this turn."""
        self._inbox = inbox

    def detach(self) -> None:
        """Drop what comes from here on, until the next turn."""
        inbox, self._inbox = self._inbox, None
        # Emptied, so that whoever waits for a place in it goes on.
        while inbox is not None and not inbox.empty():
            inbox.get_nowait()

    async def send(self, text: str, prompt_id: str) -> None:
        """Send a prompt under an id that was never used before; raises KartaError HARNESS_CRASHED."""
        message = {"role": "user", "content": text}
        prompt = {"type": "user", "message": message, "parent_tool_use_id": None, "uuid": prompt_id}
        self._is_busy = True
        await self._tell(lambda client: client.query(_once(prompt)))

    async def interrupt(self) -> None:
        """Stop what it does; returns when it has heard it. Raises KartaError HARNESS_CRASHED."""
        await self._tell(lambda client: asyncio.wait_for(client.interrupt(), INTERRUPT_SECONDS))

    def ended(self) -> KartaError:
        """Return why it is there no more."""
        return crashed(getattr(self._failure, "exit_code", None), self.last_words)

    @property
    def last_words(self) -> str:
        """The last lines that it wrote to stderr."""
        return " / ".join(self.stderr)

    async def close(self) -> None:
        """End the process, by force after some seconds; idempotent, never raises."""
        if self._owner is None:
            return
        if not self._leaving:
            self._leaving = True
            self._owner.cancel()
        await asyncio.wait({self._owner})

    async def _own(self, ready: asyncio.Future[None]) -> None:
        client = ClaudeSDKClient(self._options)
        try:
            await self._connect(client, ready)
            reader = asyncio.create_task(self._read(client), name="read Claude Code")
            try:
                await self._obey(client, reader)
            finally:
                self._leaving = True
                await self._disconnect(client)
                reader.cancel()
                await asyncio.wait({reader})
        except asyncio.CancelledError:
            _log.debug("Claude Code was closed")
        finally:
            self._leaving = True
            if not ready.done():
                ready.set_exception(start_failed("it was closed before", self.last_words))
            await self._say_ended()

    async def _connect(self, client: ClaudeSDKClient, ready: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self._start_seconds):
                await client.connect()
            info = await client.get_server_info() or {}
        except TimeoutError:
            problem = f"it took longer than {self._start_seconds:g} s"
        except Exception as error:
            problem = str(error)
        else:
            self.agents = [agent["name"] for agent in info.get("agents") or []]
            ready.set_result(None)
            return
        if not ready.done():
            ready.set_exception(start_failed(problem, self.last_words))
        raise asyncio.CancelledError

    async def _obey(self, client: ClaudeSDKClient, reader: asyncio.Task[None]) -> None:
        """Carry out commands, one after another, until the process has ended."""
        while not reader.done():
            coming = asyncio.ensure_future(self._commands.get())
            try:
                await asyncio.wait({coming, reader}, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    await _carry_out(client, *coming.result())
            finally:
                coming.cancel()

    async def _read(self, client: ClaudeSDKClient) -> None:
        try:
            async for message in client.receive_messages():
                self._is_busy &= not isinstance(message, ResultMessage)
                if self._inbox is not None:
                    await self._inbox.put(message)
        except Exception as error:
            self._failure = error
            _log.info("Claude Code ended: %s", error)

    async def _disconnect(self, client: ClaudeSDKClient) -> None:
        if self._is_busy and self._failure is None:
            # At the end of its stdin it would wait for the model to finish.
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.interrupt(), CLOSE_INTERRUPT_SECONDS)
        with contextlib.suppress(Exception):
            await client.disconnect()

    async def _tell(self, action: _Action) -> None:
        if not self.alive:
            raise self.ended()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._commands.put((action, done))
        await done

    async def _say_ended(self) -> None:
        while not self._commands.empty():
            _, done = self._commands.get_nowait()
            if not done.done():
                done.set_exception(self.ended())
        if self._inbox is not None:
            await self._inbox.put(None)

    def _keep_stderr(self, line: str) -> None:
        self.stderr.append(line[:MAX_STDERR_CHARACTERS])


async def _carry_out(client: ClaudeSDKClient, action: _Action, done: asyncio.Future[None]) -> None:
    try:
        await action(client)
    except BaseException as error:
        if not done.done():
            done.set_exception(crashed(getattr(error, "exit_code", None), str(error)))
        if not isinstance(error, Exception):
            raise
    else:
        if not done.done():
            done.set_result(None)


async def _once(prompt: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield prompt
