"""AsyncKarta: the client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from karta import v1
from karta_client import calls, flows
from karta_client.agents import Agents, agent_name
from karta_client.async_session import AsyncSession
from karta_client.calls import Call
from karta_client.connection import Connection
from karta_client.flows import Reply
from karta_client.input import InputCallback, InputRequest
from karta_client.participant import ParticipantLike, participant_id, participant_message
from karta_client.perform import events_async
from karta_client.response import Response
from karta_client.settings import Settings
from karta_client.stream import AsyncStream

R = TypeVar("R")


class AsyncKarta:
    """A client of a Karta server, for asyncio. `Karta` is the same for blocking code.

    `target` is "HOST:PORT" or "unix:/PATH"; without one, the variable
    KARTA_TARGET; without that, the server of the `project` folder (the current
    one unless named), which is joined, or started and ended with its last user.
    The constructor does no I/O.

    `on_input` answers the input requests of all turns that this client sends.
    `reconnect_timeout` is how many seconds a server that is away is waited for.
    `traceparent` is the W3C trace context of the calls; unless given, that of
    the context variable `karta.traceparent`.

    Failures are KartaErrors. Use it in one event loop at a time. It must be
    closed, or its loop ended, before the process forks: gRPC's asyncio part
    does not work in a child otherwise, nor do blocking clients there.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        project: str | Path | None = None,
        on_input: InputCallback | None = None,
        reconnect_timeout: float = 60.0,
        traceparent: str = "",
    ) -> None:
        self._settings = Settings.make(target, project, on_input, reconnect_timeout, traceparent)
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return a client with the settings of another."""
        return cls(
            settings.target,
            project=settings.project,
            on_input=settings.on_input,
            reconnect_timeout=settings.reconnect_timeout,
            traceparent=settings.traceparent,
        )

    @property
    def on_input(self) -> InputCallback | None:
        """What answers input requests when neither the session nor the call names something."""
        return self._settings.on_input

    async def session(
        self,
        metadata: Mapping[str, str] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the word that users know
        title: str = "",
        agent: v1.Agent | str | None = None,
        harness: str = "",
        user_id: str = "",
        participants: Iterable[ParticipantLike] = (),
        on_input: InputCallback | None = None,
    ) -> AsyncSession:
        """Return the session with exactly this metadata, made when there is none; atomic.

        Without metadata: a new session, or the one with the `id`. The other
        arguments serve a session that is made.
        """
        if id is not None:
            return AsyncSession(self, (await self.call(calls.get_session(id))).session, on_input)
        call = calls.create_session(
            metadata=metadata,
            title=title,
            agent=agent_name(agent),
            harness=harness,
            user_id=user_id,
            participants=map(participant_message, participants),
        )
        return AsyncSession(self, (await self.call(call)).session, on_input)

    async def sessions(
        self, metadata: Mapping[str, str] | None = None, *, query: str = ""
    ) -> AsyncIterator[AsyncSession]:
        """Iterate over the sessions whose metadata contain this and whose text contains the query, newest first."""
        token = ""
        while True:
            page = await self.call(calls.list_sessions(metadata, query, token))
            for raw in page.sessions:
                yield AsyncSession(self, raw)
            token = page.next_page_token
            if not token:
                return

    async def send(
        self,
        text: str,
        *,
        metadata: Mapping[str, str] | None = None,
        agent: v1.Agent | str | None = None,
        participant: ParticipantLike | None = None,
        on_input: InputCallback | None = None,
        busy: Literal["queue", "reject"] = "queue",
        timeout: float | None = None,
    ) -> Response[AsyncSession]:
        """Send a message to `session(metadata)` and return the answer: see AsyncSession.send."""
        session = await self.session(metadata)
        return await session.send(
            text, agent=agent, participant=participant, on_input=on_input, busy=busy, timeout=timeout
        )

    def stream(
        self,
        text: str,
        *,
        metadata: Mapping[str, str] | None = None,
        agent: v1.Agent | str | None = None,
        participant: ParticipantLike | None = None,
        on_input: InputCallback | None = None,
        busy: Literal["queue", "reject"] = "queue",
    ) -> AsyncStream:
        """Send a message to `session(metadata)` and iterate over the events: see AsyncSession.stream."""
        who = participant_id(participant)
        start = calls.start_request(
            text, agent=agent_name(agent), participant_id=who, reject_when_busy=busy == "reject"
        )
        connection = self.connection()
        prepare = flows.begin(calls.create_session(metadata=metadata), participant, start, connection.backoff())
        reply = Reply(on_input or self.on_input, lambda raw: self.answerable(raw, who), who)
        return AsyncStream(events_async(connection, prepare, reply))

    async def list_agents(self, harness: str = "") -> Agents:
        """Return the agents of the project by name, those of the default harness unless named."""
        return Agents((await self.call(calls.list_agents(harness))).agents)

    async def respond(
        self, input_request_id: str, response: v1.InputResponse, *, participant: ParticipantLike | None = None
    ) -> v1.InputRequest:
        """Answer an input request. Raises FailedPreconditionError when it was answered otherwise."""
        call = calls.respond(input_request_id, response, participant_id(participant))
        return (await self.call(call)).input_request

    async def server_info(self) -> v1.ServerInfo:
        """Return what the server is and what it refuses to exceed."""
        return (await self.call(calls.server_info())).server

    async def aclose(self) -> None:
        """Close the connection; idempotent. The project's server ends when this was its last user."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close from outside of its loop, now or as soon as that gets to it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon(loop)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def connection(self) -> Connection:
        """Return the connection for the running loop, not necessarily open: the stubs, for what has no method here."""
        loop = asyncio.get_running_loop()
        if self._connection is None or self._loop is not loop or self._connection.inherited:
            self._connection, self._loop = self._settings.connect(), loop
        return self._connection

    async def call(self, call: Call[R]) -> R:
        """Make one call."""
        return await self.connection().call(call)

    def answerable(self, raw: v1.InputRequest, who: str = "") -> InputRequest[Awaitable[v1.InputRequest]]:
        """Return the request such that awaiting its `allow()` and the like answers it."""

        async def deliver(response: v1.InputResponse) -> v1.InputRequest:
            return await self.respond(raw.input_request_id, response, participant=who)

        return InputRequest(raw, deliver)
