"""Sessions, for blocking code."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Unpack

from karta import v1
from karta_client import calls, flows
from karta_client.agents import agent_name
from karta_client.async_session import AsyncSession
from karta_client.cursor import SessionCursor
from karta_client.event import Answerable, Event
from karta_client.flows import Reply
from karta_client.input import InputCallback, InputRequest
from karta_client.options import SendOptions
from karta_client.participant import ParticipantLike, participant_id
from karta_client.perform import events, perform
from karta_client.response import Response
from karta_client.session_view import SessionView
from karta_client.stream import AsyncStream, Stream

if TYPE_CHECKING:
    from karta_client.client import Karta


class Session(SessionView):
    """A durable conversation. Made by `Karta.session`. Its methods block, except `send`, which is to be awaited."""

    def __init__(self, app: Karta, raw: v1.Session, on_input: InputCallback | None = None) -> None:
        super().__init__(raw)
        self._app = app
        self._on_input = on_input

    @property
    def current_agent(self) -> str | None:
        """The name of the agent that answers turns which name none; None for the default.

        Setting it, to an agent or its name, hands the session over: `set_agent`.
        """
        return self.raw.agent or None

    @current_agent.setter
    def current_agent(self, agent: v1.Agent | str | None) -> None:
        self.set_agent(agent)

    def set_agent(self, agent: v1.Agent | str | None) -> None:
        """Hand the session over: the next turn runs with this agent; None for the default."""
        change = v1.Session(session_id=self.id, agent=agent_name(agent))
        self.raw = self._app.call(calls.update_session(change, ["agent"])).session

    def send_sync(
        self,
        text: str,
        *,
        agent: v1.Agent | str | None = None,
        participant: ParticipantLike | None = None,
        on_input: InputCallback | None = None,
        busy: Literal["queue", "reject"] = "queue",
        timeout: float | None = None,
    ) -> Response[Session]:
        """Send a message and return the answer.

        A busy session queues it, or refuses with FailedPreconditionError. A
        participant that is new is added. Input requests go to `on_input`; without
        one they raise InputRequiredError, and the turn waits. Raises TurnError
        when the turn ends otherwise, and DeadlineError after `timeout` seconds;
        neither that nor leaving the call stops the turn.
        """
        start = calls.start_request(
            text, agent=agent_name(agent), participant_id=participant_id(participant), reject_when_busy=busy == "reject"
        )
        connection = self._app.connection()
        self.raw = perform(connection, flows.join(self.raw, participant))
        start.session_id = self.id
        turn = perform(connection, flows.send(start, self._reply(on_input, start), timeout))
        return Response(self, turn)

    async def send(self, text: str, **options: Unpack[SendOptions]) -> Response[Session]:
        """`send_sync` to be awaited: it does not block the event loop."""
        twin = self._twin()
        response = await twin.send(text, **options)
        self.raw = twin.raw
        return Response(self, response.turn)

    def stream(
        self,
        text: str,
        *,
        agent: v1.Agent | str | None = None,
        participant: ParticipantLike | None = None,
        on_input: InputCallback | None = None,
        busy: Literal["queue", "reject"] = "queue",
    ) -> Stream:
        """Send a message and iterate over the turn's events, up to its turn_finished, which says how it ended.

        With `for` or with `async for`. Without `on_input`, an input_required
        event is answered by `event.input.allow()` and the like, which an
        `async for` loop has to await. The turn starts with the iteration.
        """

        def blocking() -> Generator[Event, None, None]:
            start = calls.start_request(
                text,
                agent=agent_name(agent),
                participant_id=participant_id(participant),
                reject_when_busy=busy == "reject",
            )
            connection = self._app.connection()
            prepare = flows.begin(self.raw, participant, start, connection.backoff())
            return events(connection, prepare, self._reply(on_input, start))

        def twin() -> AsyncStream:
            return self._twin().stream(text, agent=agent, participant=participant, on_input=on_input, busy=busy)

        return Stream(blocking, twin)

    def wait(
        self, turn_id: str, *, on_input: InputCallback | None = None, timeout: float | None = None
    ) -> Response[Session]:
        """Wait for a turn that was started before; as `send` without the sending."""
        flow = flows.wait(self.id, turn_id, self._reply(on_input), timeout)
        return Response(self, perform(self._app.connection(), flow))

    def watch(self, after_sequence: int = 0, *, follow: bool = True, kinds: Sequence[str] = ()) -> Stream:
        """Iterate over the session's log behind a sequence: to its newest event, or on and on with `follow`.

        `kinds` limits it to these event types.
        """

        def blocking() -> Generator[Event, None, None]:
            connection = self._app.connection()
            cursor = SessionCursor(
                connection.backoff(), session_id=self.id, after_sequence=after_sequence, kinds=kinds, follow=follow
            )
            return events(connection, flows.at(cursor), Reply(None, self._answerable()))

        return Stream(blocking, lambda: self._twin().watch(after_sequence, follow=follow, kinds=kinds))

    def history(self, after_sequence: int = 0, *, kinds: Sequence[str] = ()) -> list[Event]:
        """Return the events so far."""
        return list(self.watch(after_sequence, follow=False, kinds=kinds))

    def turns(self) -> Iterator[v1.Turn]:
        """Iterate over the turns, newest first."""
        token = ""
        while True:
            page = self._app.call(calls.list_turns(self.id, token))
            yield from page.turns
            token = page.next_page_token
            if not token:
                return

    def pending_inputs(self) -> list[InputRequest[v1.InputRequest]]:
        """Return the input requests that wait, newest first; their `allow()` and the like answer them."""
        listed = self._app.call(calls.list_inputs(self.id, ""))
        answerable = self._answerable()
        return [answerable(item) for item in listed.input_requests]

    def cancel(self, turn_id: str | None = None, *, reason: str = "") -> v1.Turn | None:
        """Stop a turn, the active one unless named; returns it when it is terminal. None: nothing was active."""
        if turn_id is None:
            turn_id = self.refresh().raw.active_turn_id
        if not turn_id:
            return None
        return self._app.call(calls.cancel_turn(self.id, turn_id, reason)).turn

    def delete(self) -> None:
        """Remove the session with its turns and its log."""
        self._app.call(calls.delete_session(self.id))

    def refresh(self) -> Session:
        """Read the session anew, and return it."""
        self.raw = self._app.call(calls.get_session(self.id)).session
        return self

    def _reply(self, on_input: InputCallback | None, start: v1.StartTurnRequest | None = None) -> Reply:
        who = start.participant_id if start else ""
        callback = on_input or self._on_input or self._app.on_input
        return Reply(callback, self._answerable(who), who)

    def _answerable(self, who: str = "") -> Answerable:
        return lambda raw: self._app.answerable(raw, who)

    def _twin(self) -> AsyncSession:
        return AsyncSession(self._app.twin(), self.raw, self._on_input)
