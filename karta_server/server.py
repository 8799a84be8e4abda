"""The one composition root: a grpc.aio server made from a Config."""

import asyncio
import logging
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf import descriptor_pool, duration_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from karta import v1
from karta.v1 import (
    agent_service_pb2_grpc,
    input_service_pb2_grpc,
    server_service_pb2_grpc,
    session_service_pb2_grpc,
    turn_service_pb2_grpc,
)
from karta_server.adapters import build_adapters
from karta_server.config import Config
from karta_server.core.active_turn import Surroundings
from karta_server.core.agents import Agents
from karta_server.core.inputs import Inputs
from karta_server.core.participants import Participants
from karta_server.core.recovery import recover
from karta_server.core.requests import Expiry
from karta_server.core.retention import Retention
from karta_server.core.session_log import SessionLog
from karta_server.core.sessions import Sessions
from karta_server.core.turn_runner import TurnRunner
from karta_server.core.turns import Turns
from karta_server.errors import KartaError
from karta_server.harness import registry
from karta_server.harness.supervisor import Supervisor
from karta_server.ids import new_id
from karta_server.interceptors.calls import CallInterceptor
from karta_server.services.agent_service import AgentService
from karta_server.services.conversation import Conversations
from karta_server.services.input_service import InputService
from karta_server.services.server_service import ServerService
from karta_server.services.session_service import SessionService
from karta_server.services.turn_service import TurnService
from karta_server.storage.sql.store import SqlStore

log = logging.getLogger(__name__)

# How long open calls may go on once no turn runs any more.
_CALL_GRACE_SECONDS = 1.0
_LAST_WORDS_SECONDS = 0.2
# Beside the streams; waits are among them.
_MAX_UNARY_CALLS = 4096
_METADATA_BYTES = 16 * 1024
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_SERVICES = ("AgentService", "InputService", "ServerService", "SessionService", "TurnService")


class Server:
    """A Karta server. `start` it once, then `stop` it."""

    def __init__(self, config: Config) -> None:
        self.instance_id = new_id()
        self.default_harness = config.harness
        """The harness of sessions that name none; found out in `start` when the configuration names none."""
        self._config = config
        self._store = SqlStore(config.state / "karta.db")
        self._adapters = build_adapters(config)
        self._resources = AsyncExitStack()

    async def start(self) -> str:
        """Open the store, end what an earlier process left, and serve; return the bound address.

        Raises KartaError SCHEMA_TOO_NEW, ADDRESS_REFUSED, CONFIG_INVALID; nothing is left open then.
        """
        try:
            self._resources.push_async_callback(self._store.close)
            await self._store.open()
            await recover(self._store)
            await self._compose()
            return await self._serve()
        except BaseException:
            await self._resources.aclose()
            raise

    async def stop(self, drain_seconds: float) -> None:
        """Take no new work, let turns finish for a while, interrupt the rest, and let go of everything.

        When it is cancelled, call it again with less time.
        """
        await self._health.enter_graceful_shutdown()
        await self._runner.drain(drain_seconds)
        closing = asyncio.create_task(self._grpc.stop(_CALL_GRACE_SECONDS))
        # What a stream still has to say about the turns that ended goes out first.
        await asyncio.wait({closing}, timeout=_LAST_WORDS_SECONDS)
        self._calls.end_calls()
        await closing
        await self._resources.aclose()

    async def _compose(self) -> None:
        config = self._config
        if config.harness and config.harness not in self._adapters:
            known = ", ".join(self._adapters)
            message = f"There is no harness {config.harness!r}. Known harnesses: {known}."
            raise KartaError(v1.ERROR_REASON_CONFIG_INVALID, message, setting="harness.name")
        self.default_harness = config.harness or await registry.detect(config.project, self._adapters)
        self._agents = Agents(self._adapters, self.default_harness, config.agent)
        self._log = SessionLog(self._store)
        self._resources.callback(self._log.close)
        expiry = Expiry(self._store)
        expiry.start()
        self._resources.push_async_callback(expiry.close)
        retention = Retention(self._store, config.log_max_events, config.log_max_age_seconds)
        retention.start()
        self._resources.push_async_callback(retention.close)
        supervisor = Supervisor(
            self._adapters, self._store.sessions.memory, config.limits.max_live_harnesses, config.idle_seconds
        )
        supervisor.start()
        self._resources.push_async_callback(supervisor.close)
        around = Surroundings(
            self._store, self._agents, supervisor, config.limits, config.interrupt_seconds, config.log_merge_above
        )
        self._runner = TurnRunner(around, self.instance_id, config.limits.max_running_turns)
        self._runner.start()
        self._resources.push_async_callback(self._runner.drain, 0)

    async def _serve(self) -> str:
        self._calls = CallInterceptor(self._config.limits)
        self._grpc = grpc.aio.server(
            interceptors=[self._calls],
            options=_options(self._config.limits),
            maximum_concurrent_rpcs=self._config.limits.max_open_streams + _MAX_UNARY_CALLS,
        )
        self._add_services(self._grpc)
        self._health = _add_health(self._grpc)
        if self._config.reflection:
            _add_reflection(self._grpc)
        try:
            port = self._grpc.add_insecure_port(self._config.listen)
        except RuntimeError as error:
            raise KartaError(
                v1.ERROR_REASON_ADDRESS_REFUSED,
                f"Cannot listen on {self._config.listen}: another program has the address; choose another, or port 0.",
                address=self._config.listen,
            ) from error
        for name in ("", *(f"karta.v1.{service}" for service in _SERVICES)):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._grpc.start()
        if self._config.listen.startswith("unix:"):
            return self._config.listen
        return f"{self._config.listen.rpartition(':')[0]}:{port}"

    def _add_services(self, server: grpc.aio.Server) -> None:
        config, store, limits = self._config, self._store, self._config.limits
        beat = config.heartbeat_seconds
        sessions = Sessions(store, self._agents, self._runner, limits)
        turns = Turns(store, self._log, self._agents, self._runner, limits)
        inputs = Inputs(store, limits)
        conversations = Conversations(sessions, turns, inputs, self._log, beat)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(
            SessionService(sessions, Participants(store, limits), self._log, beat), server
        )
        turn_service_pb2_grpc.add_TurnServiceServicer_to_server(
            TurnService(turns, self._log, conversations, beat), server
        )
        input_service_pb2_grpc.add_InputServiceServicer_to_server(InputService(inputs, sessions, beat), server)
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(AgentService(self._agents), server)
        server_service_pb2_grpc.add_ServerServiceServicer_to_server(ServerService(self._info()), server)

    def _info(self) -> v1.ServerInfo:
        nanos = round(self._config.heartbeat_seconds * 1e9)
        return v1.ServerInfo(
            version=version("karta-grpc"),
            instance_id=self.instance_id,
            limits=self._config.limits,
            heartbeat_interval=duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9),
            default_harness=self.default_harness,
        )


def _options(limits: v1.Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_request_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
        # A watch may be idle for hours: ping it, and let clients ping as often.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Two servers on one port would share its connections without a word.
        ("grpc.so_reuseport", 0),
    ]


def _add_health(server: grpc.aio.Server) -> health.aio.HealthServicer:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


class _Symbols:
    """The descriptor pool, which by itself does not know methods by their names."""

    def __getattr__(self, name: str) -> Any:
        return getattr(descriptor_pool.Default(), name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        pool = descriptor_pool.Default()
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return pool.FindFileContainingSymbol(symbol.rpartition(".")[0])


def _add_reflection(server: grpc.aio.Server) -> None:
    """Offer reflection under both of its names; the messages are the same."""
    own = [f"karta.v1.{name}" for name in _SERVICES]
    # v1 is not listed: clients ask for the schema of what is, and that of v1 has no descriptor here.
    names = [*own, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    servicer = reflection.aio.ReflectionServicer(names, pool=_Symbols())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": handler}),)
    )
