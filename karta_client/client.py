"""Karta: the client for blocking code."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

from karta import v1
from karta_client import calls, flows
from karta_client.agents import Agents, agent_name
from karta_client.async_client import AsyncKarta
from karta_client.calls import Call
from karta_client.event import Event
from karta_client.flows import Reply
from karta_client.input import InputCallback, InputRequest
from karta_client.options import SendOptions, StreamOptions
from karta_client.participant import ParticipantLike, participant_id, participant_message
from karta_client.perform import events
from karta_client.response import Response
from karta_client.session import Session
from karta_client.settings import Settings
from karta_client.stream import Stream
from karta_client.sync_connection import SyncConnection

if TYPE_CHECKING:
    import grpc

R = TypeVar("R")


class Karta:
    """A client of a Karta server, for blocking code. `AsyncKarta` is the same for asyncio.

    `target` is "HOST:PORT" or "unix:/PATH"; without one, the variable
    KARTA_TARGET; without that, the server of the `project` folder (the current
    one unless named), which is joined, or started and ended with its last user.
    The constructor does no I/O.

    `on_input` answers the input requests of all turns that this client sends.
    `reconnect_timeout` is how many seconds a server that is away is waited for.
    `traceparent` is the W3C trace context of the calls; unless given, that of
    the context variable `karta.traceparent`. `channel` is a gRPC channel of
    your own, to be used in place of a target and never closed.

    Failures are KartaErrors. Any thread may use it. After a fork the child
    connects anew by itself; only while an event loop uses the awaitable parts,
    gRPC does not allow to fork.

    Methods block, with two exceptions that serve programs written for asyncio:
    `await app.send()`, and `async for event in app.stream()`.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        project: str | Path | None = None,
        on_input: InputCallback | None = None,
        reconnect_timeout: float = 60.0,
        traceparent: str = "",
        channel: grpc.Channel | None = None,
    ) -> None:
        self._settings = Settings.make(target, project, on_input, reconnect_timeout, traceparent)
        self._channel = channel
        self._twins: dict[asyncio.AbstractEventLoop, AsyncKarta] = {}
        self._connect()

    @property
    def on_input(self) -> InputCallback | None:
        """What answers input requests when neither the session nor the call names something."""
        return self._settings.on_input

    @property
    def agents(self) -> Agents:
        """The agents of the project by name, read anew each time: `list_agents`."""
        return self.list_agents()

    def session(
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
    ) -> Session:
        """Return the session with exactly this metadata, made when there is none; atomic.

        Without metadata: a new session, or the one with the `id`. The other
        arguments serve a session that is made.
        """
        if id is not None:
            return Session(self, self.call(calls.get_session(id)).session, on_input)
        call = calls.create_session(
            metadata=metadata,
            title=title,
            agent=agent_name(agent),
            harness=harness,
            user_id=user_id,
            participants=map(participant_message, participants),
        )
        return Session(self, self.call(call).session, on_input)

    def sessions(self, metadata: Mapping[str, str] | None = None, *, query: str = "") -> Iterator[Session]:
        """Iterate over the sessions whose metadata contain this and whose text contains the query, newest first."""
        token = ""
        while True:
            page = self.call(calls.list_sessions(metadata, query, token))
            for raw in page.sessions:
                yield Session(self, raw)
            token = page.next_page_token
            if not token:
                return

    def send_sync(
        self, text: str, *, metadata: Mapping[str, str] | None = None, **options: Unpack[SendOptions]
    ) -> Response[Session]:
        """Send a message to `session(metadata)` and return the answer: see Session.send_sync."""
        return self.session(metadata).send_sync(text, **options)

    async def send(
        self, text: str, *, metadata: Mapping[str, str] | None = None, **options: Unpack[SendOptions]
    ) -> Response[Session]:
        """`send_sync` to be awaited: it does not block the event loop."""
        response = await self.twin().send(text, metadata=metadata, **options)
        return Response(Session(self, response.session.raw), response.turn)

    def stream(
        self, text: str, *, metadata: Mapping[str, str] | None = None, **options: Unpack[StreamOptions]
    ) -> Stream:
        """Send a message to `session(metadata)` and iterate over the events: see Session.stream."""

        def blocking() -> Generator[Event, None, None]:
            who = participant_id(options.get("participant"))
            start = calls.start_request(
                text,
                agent=agent_name(options.get("agent")),
                participant_id=who,
                reject_when_busy=options.get("busy") == "reject",
            )
            connection = self.connection()
            session = calls.create_session(metadata=metadata)
            prepare = flows.begin(session, options.get("participant"), start, connection.backoff())
            callback = options.get("on_input") or self.on_input
            return events(connection, prepare, Reply(callback, lambda raw: self.answerable(raw, who), who))

        return Stream(blocking, lambda: self.twin().stream(text, metadata=metadata, **options))

    def list_agents(self, harness: str = "") -> Agents:
        """Return the agents of the project by name, those of the default harness unless named."""
        return Agents(self.call(calls.list_agents(harness)).agents)

    def respond(
        self, input_request_id: str, response: v1.InputResponse, *, participant: ParticipantLike | None = None
    ) -> v1.InputRequest:
        """Answer an input request. Raises FailedPreconditionError when it was answered otherwise."""
        return self.call(calls.respond(input_request_id, response, participant_id(participant))).input_request

    def server_info(self) -> v1.ServerInfo:
        """Return what the server is and what it refuses to exceed."""
        return self.call(calls.server_info()).server

    def close(self) -> None:
        """Close the connections; idempotent. The project's server ends when this was its last user.

        Happens by itself when the object or the interpreter goes.
        """
        self._connection.close()
        twins, self._twins = self._twins, {}
        for loop, twin in twins.items():
            twin.abandon(loop)

    async def aclose(self) -> None:
        """`close` to be awaited, for programs that used the awaitable parts."""
        twin = self._twins.pop(asyncio.get_running_loop(), None)
        if twin is not None:
            await twin.aclose()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connection(self) -> SyncConnection:
        """Return the connection, not necessarily open: the stubs, for what has no method here."""
        if self._connection.inherited:
            self._connect()
        return self._connection

    def call(self, call: Call[R]) -> R:
        """Make one call."""
        return self.connection().call(call)

    def twin(self) -> AsyncKarta:
        """Return the asyncio client of the running loop, with the same settings."""
        loop = asyncio.get_running_loop()
        with self._lock:
            for other in [other for other in self._twins if other.is_closed()]:
                self._twins.pop(other).abandon(other)
            return self._twins.setdefault(loop, AsyncKarta.from_settings(self._settings))

    def answerable(self, raw: v1.InputRequest, who: str = "") -> InputRequest[v1.InputRequest]:
        """Return the request such that its `allow()` and the like answer it."""
        return InputRequest(raw, lambda response: self.respond(raw.input_request_id, response, participant=who))

    def _connect(self) -> None:
        self._lock = threading.Lock()
        self._connection = self._settings.connect_sync(self._channel)
        weakref.finalize(self, self._connection.close)
