"""Following a session: its events as they come, its turns to their end, its input requests to their answer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from karta import v1
from karta_client import calls
from karta_client.commands.reconnecting import watch
from karta_client.cursor import SessionCursor
from karta_client.errors import KartaError

if TYPE_CHECKING:
    from karta_client.connection import Connection

Answer = Callable[[v1.InputRequest], Awaitable[v1.InputResponse]]
Accepted = Callable[[v1.Turn], None]


def _nothing(_: v1.Turn) -> None:
    return None


class Follower:
    """Shows a session's events, gap-free and in order, and knows what its turns wait for.

    An asynchronous context: within it the events are watched and given to
    `show`. One task at a time may call `finish`.
    """

    def __init__(
        self,
        connection: "Connection",
        session: v1.Session,
        show: Callable[[v1.Event], None],
        *,
        after: int,
        participant_id: str = "",
    ) -> None:
        self.participant_id = participant_id
        self.connection = connection
        self.session = session
        self.cursor = after
        """Sequence of the newest event that was shown."""
        self.pending: dict[str, v1.InputRequest] = {}
        """Input requests that wait, by id, oldest first."""
        self.active_turn_id = session.active_turn_id
        """The turn that runs, whoever started it."""
        self._show = show
        self._finished: dict[str, v1.TurnFinished] = {}
        self._mine: set[str] = set()
        self._last_turn: str | None = None
        self._gate = asyncio.Lock()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Follower":
        listed = await self.connection.call(calls.list_inputs(self.session.session_id, ""))
        # Newest first; those made later come as events too, and replace themselves.
        self.pending = {request.input_request_id: request for request in reversed(listed.input_requests)}
        self._task = asyncio.create_task(self._watch())
        self._task.add_done_callback(lambda _: self._wake())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def ended(self) -> bool:
        """Whether no more events come: the stream failed."""
        return self._task is not None and self._task.done()

    async def start(
        self, message: str, *, agent: str = "", last: bool = False, accepted: Accepted = _nothing
    ) -> v1.Turn:
        """Start a turn. `accepted` is called before any event of it is shown; with `last`, none is shown behind it."""
        request = calls.start_request(message, agent=agent, participant_id=self.participant_id)
        request.session_id = self.session.session_id
        async with self._gate:
            turn = (await self.connection.call(calls.start_turn(request))).turn
            self.mine(turn.turn_id)
            self._last_turn = turn.turn_id if last else None
            accepted(turn)
            return turn

    def mine(self, turn_id: str) -> None:
        """Wait for a turn's end from now on, also if nobody asks for it yet."""
        self._mine.add(turn_id)

    async def finish(self, turn_id: str, answer: Answer, *, any_turn: bool = False) -> v1.TurnFinished:
        """Follow a turn of `mine` to its end, answering the input requests that it, or any turn, waits for.

        Raises what `answer` raises, and what ended the stream of events.
        """
        while turn_id not in self._finished:
            waiting = (r for r in self.pending.values() if any_turn or r.turn_id == turn_id)
            if request := next(waiting, None):
                await self.resolve(request, answer)
            else:
                await self._change()
        self._mine.discard(turn_id)
        return self._finished.pop(turn_id)

    async def resolve(self, request: v1.InputRequest, answer: Answer) -> None:
        """Answer an input request; asking ends when somebody else was faster or the turn ended."""
        asking = asyncio.ensure_future(answer(request))
        try:
            while not asking.done() and request.input_request_id in self.pending:
                await self._change(asking)
            if not asking.done():
                return
            response = asking.result()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        if request.input_request_id in self.pending:
            await self.respond(request.input_request_id, response)

    async def respond(self, input_request_id: str, response: v1.InputResponse) -> None:
        """Give an answer. That another one won is no failure here: its event tells."""
        try:
            await self.connection.call(calls.respond(input_request_id, response, self.participant_id))
        except KartaError as error:
            if error.reason != "INPUT_ALREADY_RESOLVED":
                raise
        self.pending.pop(input_request_id, None)

    async def _change(self, *others: asyncio.Future[v1.InputResponse]) -> None:
        """Wait until an event came, or one of the others is done."""
        assert self._task
        if self._task.done():
            self._task.result()
            raise EOFError("the server ended the stream of events")
        # Taken before anything can happen: every event sets the present one and puts a new one in its place.
        change = asyncio.ensure_future(self._changed.wait())
        waited: set[asyncio.Future[Any]] = {change, *others}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch(self) -> None:
        cursor = SessionCursor(
            self.connection.backoff(), session_id=self.session.session_id, after_sequence=self.cursor
        )
        stream = watch(self.connection, cursor)
        async with aclosing(stream):
            async for events in stream:
                async with self._gate:
                    if self._take_all(events):
                        return

    def _take_all(self, events: Iterable[v1.Event]) -> bool:
        for event in events:
            self._take(event)
            if event.turn_id == self._last_turn and event.HasField("turn_finished"):
                return True
        return False

    def _take(self, event: v1.Event) -> None:
        self._show(event)
        self.cursor = event.sequence
        match event.WhichOneof("kind"):
            case "turn_started":
                self.active_turn_id = event.turn_id
            case "input_required":
                request = event.input_required.input_request
                self.pending[request.input_request_id] = request
            case "input_resolved":
                self.pending.pop(event.input_resolved.input_request_id, None)
            case "turn_finished":
                self.active_turn_id = "" if self.active_turn_id == event.turn_id else self.active_turn_id
                if event.turn_id in self._mine:
                    self._finished[event.turn_id] = event.turn_finished
        self._wake()
