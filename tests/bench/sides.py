"""The two sides of a comparison: a server and its client, opened once and run once a round."""

import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from karta_server.testing.offline_model import offline_environment
from tests.bench import venvs
from tests.bench.processes import ROOT, Client, Server, cpu_seconds_of, environment

# What a server of many turns at once is told; everything else is the default.
SETTINGS = {
    "KARTA_LOG_LEVEL": "warning",
    # Peers send every piece by itself, and so does Karta here.
    "KARTA_LOG_MERGE_ABOVE": "0",
    "KARTA_LIMITS_MAX_LIVE_HARNESSES": "64",
    "KARTA_LIMITS_MAX_OPEN_STREAMS": "20000",
}
_HERE = Path(__file__).parent
_COMMANDS = Path(sys.executable).parent


@dataclass
class Sample:
    """What one run of one side measured."""

    count: int
    """Events, turns or calls."""
    seconds: float
    server_cpu: float = 0.0
    client_cpu: float = 0.0
    latencies: list[float] = field(default_factory=list, repr=False)
    value: float = 0.0
    """What a row that is neither rate nor latency measures."""

    def raw(self) -> dict[str, Any]:
        """Return it for the JSON."""
        kept: dict[str, Any] = {
            "count": self.count,
            "seconds": round(self.seconds, 6),
            "server_cpu_us": round(self.server_cpu / self.count * 1e6, 3),
            "client_cpu_us": round(self.client_cpu / self.count * 1e6, 3),
        }
        if self.latencies:
            kept["p50_us"] = round(p50(self) * 1e6, 1)
        if self.value:
            kept["value"] = round(self.value, 6)
        return kept


def rate(sample: Sample) -> float:
    """What happened a second."""
    return sample.count / sample.seconds


def server_cpu(sample: Sample) -> float:
    """CPU seconds of the server for each."""
    return sample.server_cpu / sample.count


def p50(sample: Sample) -> float:
    """The median of the latencies in seconds."""
    ordered = sorted(sample.latencies)
    return ordered[len(ordered) // 2]


def value(sample: Sample) -> float:
    """What the side itself measured."""
    return sample.value


class Side(ABC):
    """One side of a comparison."""

    name: str

    @abstractmethod
    def open(self) -> None:
        """Start what every round needs."""

    @abstractmethod
    def run(self) -> Sample:
        """Measure once."""

    @abstractmethod
    def close(self) -> None:
        """End what was started; idempotent."""

    def server_pid(self) -> int | None:
        """Return the process that a profiler looks into."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Serve = Callable[[Path], Server]


class Served(Side):
    """A server process and a client process."""

    def __init__(self, name: str, serve: Serve, scenario: str, **parameters: Any) -> None:
        self.name = name
        self.serve, self.scenario, self.parameters = serve, scenario, parameters
        self._stack = ExitStack()

    def open(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="karta-bench-")))
        self.server = self.serve(folder)
        self._stack.callback(self.server.close)
        self.client = Client(self.scenario, folder, address=self.server.address, **self.parameters)
        self._stack.callback(self.client.close)

    def run(self) -> Sample:
        before = self.server.cpu_seconds()
        measured = self.client.run()
        return Sample(
            measured["count"],
            measured["seconds"],
            self.server.cpu_seconds() - before,
            measured["client_cpu"],
            measured.get("latencies", []),
        )

    def close(self) -> None:
        self._stack.close()

    def server_pid(self) -> int | None:
        return self.server.pid


class ClaudeTurns(Served):
    """Karta on the real Claude Code, whose model runs beside it."""

    def __init__(self, name: str, turns: int) -> None:
        super().__init__(name, karta(), "grpc_calls:Callers", callers=1, turns=turns)

    def open(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="karta-bench-")))
        model = offline_model(folder)
        self._stack.callback(model.close)
        self.serve = karta(harness="claude_code", **offline_environment(folder / "claude", model.address))
        super().open()


class SdkTurns(Served):
    """ClaudeSDKClient on the real Claude Code, in the client's process; the only server is the model."""

    def __init__(self, name: str, turns: int) -> None:
        super().__init__(name, offline_model, "sdk_calls:SdkTurns", turns=turns)

    def run(self) -> Sample:
        return replace(super().run(), server_cpu=0.0)  # The model's is of neither side.


class Command(Side):
    """A command, run to its end some times a round."""

    def __init__(self, name: str, *command: str, times: int) -> None:
        self.name = name
        self._command, self._times = command, times

    def open(self) -> None:
        """Each run is a process of its own."""

    def run(self) -> Sample:
        begin = time.perf_counter()
        cpu = sum(self._cpu_seconds() for _ in range(self._times))
        return Sample(self._times, time.perf_counter() - begin, cpu)

    def close(self) -> None:
        """Nothing is left of it."""

    def _cpu_seconds(self) -> float:
        with tempfile.TemporaryDirectory(prefix="karta-bench-") as folder:
            return cpu_seconds_of(self._command, environment(Path(folder) / "home"))


class ServerStart(Command):
    """A server on a new folder with an agent of Claude Code, until it says that it serves."""

    def _cpu_seconds(self) -> float:
        with tempfile.TemporaryDirectory(prefix="karta-bench-") as name:
            folder = Path(name)
            agents = folder / "project" / ".claude" / "agents"
            agents.mkdir(parents=True)
            (agents / "poet.md").write_text("---\nname: poet\ndescription: Answers in verse.\n---\nAnswer in rhyme.\n")
            command = [*self._command, str(folder / "project"), "--listen", "127.0.0.1:0"]
            server = Server(command, folder, environment(folder / "home"), "start")
            try:
                return server.cpu_seconds()
            finally:
                server.close()


class Idle(Served):
    """Memory of a server for each thing that is open in it; a fresh server each round."""

    def __init__(self, name: str, serve: Serve, scenario: str, count: int, **parameters: Any) -> None:
        super().__init__(name, serve, scenario, **parameters)
        self._count = count

    def open(self) -> None:
        """Each round opens its own."""

    def run(self) -> Sample:
        super().open()
        try:
            # What the first streams bring along (arenas, caches) is the server's, not a stream's.
            self.client.run()
            before = self.server.resident_bytes()
            sample = super().run()
            sample.value = (self.server.resident_bytes() - before) / sample.count
        finally:
            self.close()
        return sample


def karta(store: str = "sql", harness: str = "scripted", **variables: str) -> Serve:
    """Return what starts Karta: its own command with its default durability, or with the log off."""

    def serve(folder: Path) -> Server:
        project = folder / "project"
        project.mkdir()
        options = [str(project), "--harness", harness, "--listen", "127.0.0.1:0"]
        command = [sys.executable, "-m", "tests.bench.servers.karta", store, "dev-serve", *options]
        return Server(command, folder, environment(folder / "home", **SETTINGS, **variables), f"karta-{store}")

    return serve


def bare(folder: Path) -> Server:
    """Start the bare grpc.aio server."""
    return Server([sys.executable, "-m", "tests.bench.servers.bare"], folder, environment(folder / "home"), "bare")


def offline_model(folder: Path) -> Server:
    """Start the model that Claude Code talks to."""
    command = [sys.executable, "-m", "karta_server.testing.offline_model"]
    return Server(command, folder, environment(folder / "home"), "model")


def command(name: str) -> str:
    """Return the path of an installed command of the project."""
    return str(_COMMANDS / name)


def sse(kind: str) -> Serve:
    """Return what starts a server of Server-Sent Events."""

    def serve(folder: Path) -> Server:
        command = [str(venvs.python("web")), "-P", str(_HERE / "servers" / "sse.py"), kind]
        return Server(command, folder, _alone(folder), kind)

    return serve


def upstream(folder: Path) -> Server:
    """Start karta-runtime 0.1.0."""
    project = folder / "project"
    project.mkdir()
    command = [str(venvs.python("upstream")), "-P", str(_HERE / "servers" / "upstream.py"), str(project)]
    return Server(command, folder, _alone(folder), "upstream")


def _alone(folder: Path) -> dict[str, str]:
    """An environment in which the project's packages are not found: they have the names of upstream's."""
    variables = environment(folder / "home")
    with suppress(KeyError):
        del variables["PYTHONPATH"]
    return variables


assert (ROOT / "karta_server").is_dir()
