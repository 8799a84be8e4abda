"""The rows: what is compared with what, and the target of ARCHITECTURE's performance table."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.sides import (
    ClaudeTurns,
    Command,
    Idle,
    Sample,
    SdkTurns,
    Served,
    ServerStart,
    Side,
    bare,
    command,
    karta,
    p50,
    rate,
    server_cpu,
    sse,
    upstream,
    value,
)


@dataclass(frozen=True)
class Metric:
    """One number of a comparison: what is measured, and how its ratio counts."""

    id: str
    name: str
    unit: str
    target: float
    measure: Callable[[Sample], float]
    at_least: bool = True
    """Whether the target is a lower bound."""
    inverse: bool = False
    """Whether the ratio is peer / karta, for what is better when small and has a lower bound."""

    def ratio(self, ours: Sample, theirs: Sample) -> float:
        """Return the ratio of one round."""
        mine, other = self.measure(ours), self.measure(theirs)
        return other / mine if self.inverse else mine / other

    def met(self, ratio: float) -> bool:
        """Whether a ratio reaches the target."""
        return ratio >= self.target if self.at_least else ratio <= self.target


@dataclass(frozen=True)
class Comparison:
    """Two sides that run in turns, and what is made of it."""

    karta: Side
    peer: Side
    metrics: tuple[Metric, ...]

    @property
    def ids(self) -> set[str]:
        """The ids of its rows, with and without what is behind the hyphen."""
        return {name for metric in self.metrics for name in (metric.id, metric.id.partition("-")[0])}


def comparisons(*, quick: bool) -> list[Comparison]:
    """Return all comparisons, in the order of their ids."""
    size = _Sizes(quick)
    turns = {"turns": 32, "pieces": size.pieces}
    return [*_streaming(turns), *_calls_and_reads(size, turns), *_idle_and_starts(size)]


def _streaming(turns: dict[str, int]) -> list[Comparison]:
    return [
        Comparison(
            Served("Karta", karta(), "grpc_calls:Turns", **turns),
            Served("bare grpc.aio, one event a message", bare, "grpc_calls:BareTurns", **turns),
            (Metric("P1", "persisted streaming of 32 turns / bare grpc.aio", "events/s", 4, rate),),
        ),
        Comparison(
            Served("Karta", karta(), "grpc_calls:Turns", **turns),
            Served("Karta, log off", karta("memory"), "grpc_calls:Turns", **turns),
            (Metric("P2", "persisted streaming of 32 turns / the same with the log off", "events/s", 0.65, rate),),
        ),
        Comparison(
            Served("Karta", karta(), "grpc_calls:Turns", **turns),
            Served("sse-starlette", sse("sse-starlette"), "http_calls:SseTurns", **turns),
            (Metric("P3", "persisted streaming of 32 turns / sse-starlette, unpersisted", "events/s", 2.5, rate),),
        ),
        Comparison(
            Served("Karta", karta(), "grpc_calls:Turns", **turns),
            Served("FastAPI SSE", sse("fastapi"), "http_calls:SseTurns", **turns),
            (Metric("P3-fastapi", "persisted streaming of 32 turns / FastAPI's SSE", "events/s", 2.5, rate),),
        ),
        Comparison(
            Served("Karta", karta(), "grpc_calls:Turns", **turns),
            Served("karta-runtime 0.1.0, SSE", upstream, "http_calls:UpstreamTurns", **turns),
            (
                Metric("P4", "persisted streaming of 32 turns / karta-runtime 0.1.0's SSE", "events/s", 5, rate),
                Metric(
                    "P4-cpu",
                    "server CPU an event: karta-runtime 0.1.0's SSE / Karta's",
                    "CPU s/event",
                    5,
                    server_cpu,
                    inverse=True,
                ),
            ),
        ),
    ]


def _calls_and_reads(size: "_Sizes", turns: dict[str, int]) -> list[Comparison]:
    return [
        Comparison(
            Served("Karta", karta(), "grpc_calls:Callers", callers=32, turns=size.calls),
            Served("karta-runtime 0.1.0, unary", upstream, "http_calls:UpstreamCallers", callers=32, turns=size.calls),
            (Metric("P5", "durable turns, 32 callers / karta-runtime 0.1.0's, not durable", "turns/s", 1, rate),),
        ),
        Comparison(
            Served("Karta", karta(), "grpc_calls:Approvals", approvals=size.approvals),
            Served("bare grpc.aio, unary", bare, "grpc_calls:BareCalls", calls=size.approvals),
            (Metric("P6", "answer to an approval, durable / bare unary call", "s, p50", 2.5, p50, at_least=False),),
        ),
        Comparison(
            Served("Karta, finished session", karta(), "grpc_calls:CatchUp", turns=size.history, pieces=20_000),
            Served("Karta, log off, live", karta("memory"), "grpc_calls:Turns", **turns),
            (Metric("P7", "reading a finished session / live streaming with the log off", "events/s", 4, rate),),
        ),
        Comparison(
            Served("Karta", karta(), "grpc_calls:FanOut", watchers=100, pieces=size.fan_out),
            Served(
                "bare grpc.aio, one event a message", bare, "grpc_calls:BareFanOut", watchers=100, pieces=size.fan_out
            ),
            (Metric("P8", "one turn to 100 watchers / one message an event", "events/s", 5, rate),),
        ),
    ]


def _idle_and_starts(size: "_Sizes") -> list[Comparison]:
    imports = Command("import grpc, protobuf", sys.executable, "-c", "import grpc, google.protobuf", times=size.starts)
    return [
        Comparison(
            Idle("Karta", karta(), "grpc_calls:IdleWatches", count=size.idle, watches=size.idle),
            Idle("bare grpc.aio", bare, "grpc_calls:BareIdleWatches", count=size.idle, watches=size.idle),
            (Metric("P9", "memory of an idle watch / an idle bare stream", "bytes", 1.5, value, at_least=False),),
        ),
        Comparison(
            Idle("Karta", karta(), "grpc_calls:IdleSessions", count=size.idle, sessions=size.idle),
            Idle("bare grpc.aio", bare, "grpc_calls:BareIdleWatches", count=size.idle, watches=size.idle),
            # Nothing is the aim; a twentieth of a stream is what can be told from it. What grows to a limit while
            # the first thousands of sessions are made, like SQLite's page cache, is in the figure too.
            (Metric("P9-session", "memory of an idle session / an idle bare stream", "bytes", 0.05, value, False),),
        ),
        Comparison(
            ClaudeTurns("Karta", size.claude),
            SdkTurns("ClaudeSDKClient alone", size.claude),
            (Metric("P10", "warm turn of Claude Code / by its SDK alone", "s, p50", 1.1, p50, at_least=False),),
        ),
        Comparison(
            Command("kartactl --version", command("kartactl"), "--version", times=size.starts),
            imports,
            (Metric("P12", "CPU of kartactl --version / of importing grpc", "CPU s", 2, server_cpu, at_least=False),),
        ),
        Comparison(
            ServerStart("karta-runtime dev-serve", command("karta-runtime"), "dev-serve", times=size.starts),
            imports,
            (Metric("P12-server", "CPU of a server's start / of importing grpc", "CPU s", 12, server_cpu, False),),
        ),
    ]


class _Sizes:
    """How much a round does."""

    def __init__(self, quick: bool) -> None:
        self.pieces = 500 if quick else 2_000
        self.calls = 5 if quick else 25
        self.approvals = 50 if quick else 200
        self.history = 3 if quick else 5
        self.fan_out = 200 if quick else 500
        self.idle = 300 if quick else 1_000
        self.claude = 10 if quick else 25
        self.starts = 3 if quick else 5
