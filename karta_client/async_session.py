"""Sessions, for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TYPE_CHECKING, Literal

from karta import v1
from karta_client import calls, flows
from karta_client.agents import agent_name
from karta_client.cursor import SessionCursor
from karta_client.event import Answerable, Event
from karta_client.flows import Reply
from karta_client.input import InputCallback, InputRequest
from karta_client.participant import ParticipantLike, participant_id
from karta_client.perform import events_async, perform_async
from karta_client.response import Response
from karta_client.session_view import SessionView
from karta_client.stream import AsyncStream

if TYPE_CHECKING:
    from karta_client.async_client import AsyncKarta


class AsyncSession(SessionView):
    """A durable conversation. Made by `AsyncKarta.session`."""

    def __init__(self, app: AsyncKarta, raw: v1.Session, on_input: InputCallback | None = None) -> None:
        super().__init__(raw)
        self._app = app
        self._on_input = on_input

    async def set_agent(self, agent: v1.Agent | str | None) -> None:
        """Hand the session over: the next turn runs with this agent; None for the default."""
        change = v1.Session(session_id=self.id, agent=agent_name(agent))
        self.raw = (await self._app.call(calls.update_session(change, ["agent"]))).session

    async def send(
        self,
        text: str,
        *,
        agent: v1.Agent | str | None = None,
        participant: ParticipantLike | None = None,
        on_input: InputCallback | None = None,
        busy: Literal["queue", "reject"] = "queue",
        timeout: float | None = None,
    ) -> Response[AsyncSession]:
        """Send a message and return the answer.

        A busy session queues it, or refuses with FailedPreconditionError. A
        participant that is new is added. Input requests go to `on_input`; without
        one they raise InputRequiredError, and the turn waits. Raises TurnError
        when the turn ends otherwise, and DeadlineError after `timeout` seconds;
        neither that nor cancelling the call stops the turn.
        """
        start = calls.start_request(
            text, agent=agent_name(agent), participant_id=participant_id(participant), reject_when_busy=busy == "reject"
        )
        connection = self._app.connection()
        self.raw = await perform_async(connection, flows.join(self.raw, participant))
        start.session_id = self.id
        turn = await perform_async(connection, flows.send(start, self._reply(on_input, start), timeout))
        return Response(self, turn)

    def stream(
        self,
        text: str,
        *,
        agent: v1.Agent | str | None = None,
        participant: ParticipantLike | None = None,
        on_input: InputCallback | None = None,
        busy: Literal["queue", "reject"] = "queue",
    ) -> AsyncStream:
        """Send a message and iterate over the turn's events, up to its turn_finished, which says how it ended.

        Without `on_input`, an input_required event is answered by
        `await event.input.allow()` and the like. The turn starts with the
        iteration.
        """
        start = calls.start_request(
            text, agent=agent_name(agent), participant_id=participant_id(participant), reject_when_busy=busy == "reject"
        )
        connection = self._app.connection()
        prepare = flows.begin(self.raw, participant, start, connection.backoff())
        return AsyncStream(events_async(connection, prepare, self._reply(on_input, start)))

    async def wait(
        self, turn_id: str, *, on_input: InputCallback | None = None, timeout: float | None = None
    ) -> Response[AsyncSession]:
        """Wait for a turn that was started before; as `send` without the sending."""
        flow = flows.wait(self.id, turn_id, self._reply(on_input), timeout)
        return Response(self, await perform_async(self._app.connection(), flow))

    def watch(self, after_sequence: int = 0, *, follow: bool = True, kinds: Sequence[str] = ()) -> AsyncStream:
        """Iterate over the session's log behind a sequence: to its newest event, or on and on with `follow`.

        `kinds` limits it to these event types.
        """
        connection = self._app.connection()
        cursor = SessionCursor(
            connection.backoff(), session_id=self.id, after_sequence=after_sequence, kinds=kinds, follow=follow
        )
        return AsyncStream(events_async(connection, flows.at(cursor), Reply(None, self._answerable())))

    async def history(self, after_sequence: int = 0, *, kinds: Sequence[str] = ()) -> list[Event]:
        """Return the events so far."""
        return [event async for event in self.watch(after_sequence, follow=False, kinds=kinds)]

    async def turns(self) -> AsyncIterator[v1.Turn]:
        """Iterate over the turns, newest first."""
        token = ""
        while True:
            page = await self._app.call(calls.list_turns(self.id, token))
            for turn in page.turns:
                yield turn
            token = page.next_page_token
            if not token:
                return

    async def pending_inputs(self) -> list[InputRequest[Awaitable[v1.InputRequest]]]:
        """Return the input requests that wait, newest first; awaiting their `allow()` and the like answers them."""
        listed = await self._app.call(calls.list_inputs(self.id, ""))
        answerable = self._answerable()
        return [answerable(item) for item in listed.input_requests]

    async def cancel(self, turn_id: str | None = None, *, reason: str = "") -> v1.Turn | None:
        """Stop a turn, the active one unless named; returns it when it is terminal. None: nothing was active."""
        if turn_id is None:
            turn_id = (await self.refresh()).raw.active_turn_id
        if not turn_id:
            return None
        return (await self._app.call(calls.cancel_turn(self.id, turn_id, reason))).turn

    async def delete(self) -> None:
        """Remove the session with its turns and its log."""
        await self._app.call(calls.delete_session(self.id))

    async def refresh(self) -> AsyncSession:
        """Read the session anew, and return it."""
        self.raw = (await self._app.call(calls.get_session(self.id))).session
        return self

    def _reply(self, on_input: InputCallback | None, start: v1.StartTurnRequest | None = None) -> Reply:
        who = start.participant_id if start else ""
        callback = on_input or self._on_input or self._app.on_input
        return Reply(callback, self._answerable(who), who)

    def _answerable(self, who: str = "") -> Answerable:
        return lambda raw: self._app.answerable(raw, who)
