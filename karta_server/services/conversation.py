"""TurnService.Converse: one session on one stream."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from karta import v1
from karta_server.core import checks
from karta_server.core.caller import Caller
from karta_server.core.inputs import Inputs
from karta_server.core.ledger import TERMINAL
from karta_server.core.session_log import SessionLog
from karta_server.core.sessions import Sessions
from karta_server.core.turns import Turns
from karta_server.error_codes import to_error
from karta_server.errors import KartaError
from karta_server.services.frames import Heartbeat, conversation_frame, frame, heartbeat_seconds
from karta_server.storage.contract import Frames, SessionKey

# Frames that wait for a slow client; then commands and events are held back.
_MAX_WAITING_FRAMES = 64
_MAX_COMMAND_ID = 128


class Conversations:
    """What a conversation's commands are done with."""

    def __init__(
        self, sessions: Sessions, turns: Turns, inputs: Inputs, log: SessionLog, heartbeat_seconds: float
    ) -> None:
        self.sessions = sessions
        self.turns = turns
        self.inputs = inputs
        self.log = log
        self.heartbeat_seconds = heartbeat_seconds

    async def converse(
        self, caller: Caller, commands: AsyncIterator[v1.ConverseRequest]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the conversation's frames.

        Ends when the client has closed its side and every turn that it started
        here is terminal.
        """
        opening = await anext(commands, None)
        if opening is None or opening.WhichOneof("command") != "open":
            raise checks.invalid("command", "must be `open` in the first message of the stream.")
        key = SessionKey(checks.tenant(caller, opening.open.tenant_id), opening.open.session_id)
        session = await self.sessions.get(key)
        interval = opening.open.heartbeat_interval if opening.open.HasField("heartbeat_interval") else None
        idle_seconds = heartbeat_seconds(interval, self.heartbeat_seconds)
        conversation = _Conversation(self, caller, key, checks.event_kinds(opening.open.kinds), idle_seconds)
        after = opening.open.after_sequence if opening.open.HasField("after_sequence") else session.latest_sequence
        opened = v1.CommandResult(command_id=opening.command_id, opened=session)
        yield v1.ConverseResponse(command_result=opened).SerializeToString()
        async with aclosing(conversation.run(commands, after)) as frames:
            async for frame_bytes in frames:
                yield frame_bytes


class _Conversation:
    def __init__(
        self, core: Conversations, caller: Caller, key: SessionKey, kinds: frozenset[str], idle_seconds: float
    ) -> None:
        self._idle_seconds = idle_seconds
        self._core = core
        self._caller = caller
        self._key = key
        self._kinds = kinds | {"turn_finished"} if kinds else kinds
        self._outgoing: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_WAITING_FRAMES)
        self._open_turns: set[str] = set()
        # A turn may be over before the result of its start_turn is back.
        self._finished_turns: deque[str] = deque(maxlen=1024)
        self._closed = False

    async def run(self, commands: AsyncIterator[v1.ConverseRequest], after: int) -> AsyncGenerator[bytes, None]:
        tasks = [asyncio.create_task(self._obey(commands)), asyncio.create_task(self._watch(after))]
        for task in tasks:
            task.add_done_callback(self._ended)
        try:
            while (outgoing := await self._next(tasks)) is not None:
                yield outgoing
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self, tasks: list[asyncio.Task[None]]) -> bytes | None:
        outgoing = await self._outgoing.get()
        if outgoing is None:
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.result()
        return outgoing

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End the stream when a side failed; wake a stream that waits."""
        if not task.cancelled() and task.exception() is not None:
            self._end()

    def _end(self) -> None:
        while self._outgoing.full():
            self._outgoing.get_nowait()
        self._outgoing.put_nowait(None)

    async def _obey(self, commands: AsyncIterator[v1.ConverseRequest]) -> None:
        async for command in commands:
            result = v1.CommandResult(command_id=command.command_id[:_MAX_COMMAND_ID])
            try:
                checks.text("command_id", command.command_id, _MAX_COMMAND_ID)
                await self._do(command, result)
            except KartaError as error:
                result.error.CopyFrom(to_error(error))
            await self._outgoing.put(v1.ConverseResponse(command_result=result).SerializeToString())
        self._closed = True
        await self._end_when_done()

    async def _do(self, command: v1.ConverseRequest, result: v1.CommandResult) -> None:
        kind = command.WhichOneof("command")
        if kind == "start_turn":
            self._place(command.start_turn, "start_turn")
            turn = await self._core.turns.start(self._caller, command.start_turn)
            if turn.turn_id not in self._finished_turns and await self._runs(turn):
                self._open_turns.add(turn.turn_id)
            result.turn_started.turn.CopyFrom(turn)
        elif kind == "respond":
            await self._check_asked_here(command.respond)
            result.responded.CopyFrom(await self._core.inputs.respond(self._caller, command.respond))
        elif kind == "cancel":
            self._place(command.cancel, "cancel")
            result.cancelled.turn.CopyFrom(await self._core.turns.cancel(self._caller, command.cancel))
        elif kind == "open":
            raise checks.invalid("command", "cannot be `open` twice in one stream.")
        else:
            checks.required("command", None)

    def _place(self, request: v1.StartTurnRequest | v1.CancelTurnRequest, field: str) -> None:
        """Fill in the conversation's own session; no other is allowed."""
        request.session_id = request.session_id or self._key.session_id
        if request.session_id != self._key.session_id:
            raise checks.invalid(f"{field}.session_id", "is another session than the conversation's.")

    async def _runs(self, turn: v1.Turn) -> bool:
        """Whether the end of the turn is still to come; a repeated command may have started it long ago."""
        return (await self._core.turns.get(self._key, turn.turn_id)).state not in TERMINAL

    async def _check_asked_here(self, respond: v1.RespondToInputRequest) -> None:
        request = v1.GetInputRequestRequest(tenant_id=respond.tenant_id, input_request_id=respond.input_request_id)
        found = (await self._core.inputs.get(self._caller, request)).input_request
        if found.session_id != self._key.session_id:
            raise checks.invalid("respond.input_request_id", "is of another session than the conversation's.")

    async def _watch(self, after: int) -> None:
        beat = Heartbeat(self._idle_seconds)
        async with self._core.log.watch(self._key, after) as cursor:
            while True:
                frames = await cursor.next(beat.remaining())
                data, ended = self._wanted(frames) if frames is not None else (b"", [])
                if data or beat.due():
                    beat.sent()
                    await self._outgoing.put(conversation_frame(frame(data, cursor.position)))
                # Now, and not before the frame that tells it is on its way.
                self._open_turns.difference_update(ended)
                self._finished_turns.extend(ended)
                await self._end_when_done()

    async def _end_when_done(self) -> None:
        if self._closed and not self._open_turns:
            await self._outgoing.put(None)

    def _wanted(self, frames: Frames) -> tuple[bytes, list[str]]:
        """Return the frames that no filter leaves out, and which turns end in them."""
        if frames.turn_id and not self._kinds:
            return frames.data, [frames.turn_id] if frames.finishes else []
        kept = v1.EventFrame()
        ended = []
        for event in v1.EventFrame.FromString(frames.data).events:
            kind = event.WhichOneof("kind")
            if not self._kinds or kind in self._kinds:
                kept.events.append(event)
            if kind == "turn_finished":
                ended.append(event.turn_id)
        return kept.SerializeToString(), ended
