"""What is installed, found and missing for sessions to run, and how to mend it. Changes nothing."""

import asyncio
import importlib.metadata
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from karta import v1
from karta_server.adapters import build_adapters
from karta_server.config import Config, load
from karta_server.errors import KartaError
from karta_server.harness import registry
from karta_server.harness.contract import HarnessAdapter

DISTRIBUTION = "karta-grpc"
LEAST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 256 * 1024 * 1024
_DESCRIBE_SECONDS = 30.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    good: bool
    detail: str
    """What was found."""
    mend: str = ""
    """What to do about it; empty when it is good."""
    needed: bool = True
    """Whether no session can run unless it is good."""


def examine(project: str | Path, state: str | None = None) -> list[Finding]:
    """Look at everything that a session in the project needs; never raises."""
    findings = [_python(), _packages()]
    try:
        config = load(project, state=state)
    except KartaError as error:
        return [*findings, Finding("configuration", False, error.message, "Correct it and run this again.")]
    source = config.project / "karta.jsonc"
    shown = str(source) if source.exists() else f"defaults, no {source.name} in {config.project}"
    findings.append(Finding("configuration", True, shown))
    findings += asyncio.run(_harnesses(config))
    for name, look in (("state", _state), ("schema", _schema), ("disk", _disk), ("address", _address)):
        findings.append(_guarded(name, look, config))
    return findings


def ready(findings: list[Finding]) -> bool:
    """Whether a session could run."""
    return all(finding.good or not finding.needed for finding in findings)


def report(findings: list[Finding], output: str) -> str:
    """Return the findings as "text" or "json"."""
    if output == "json":
        return json.dumps({"ready": ready(findings), "findings": [asdict(finding) for finding in findings]}, indent=2)
    width = max(len(finding.name) for finding in findings)
    lines = [line for finding in findings for line in _lines(finding, width)]
    verdict = "A session can run here." if ready(findings) else "No session can run here yet: see what FAILED."
    return "\n".join([*lines, "", verdict])


def _lines(finding: Finding, width: int) -> Iterator[str]:
    mark = "ok" if finding.good else "FAILED" if finding.needed else "note"
    yield f"{mark:6}  {finding.name:{width}}  {finding.detail}"
    if finding.mend:
        yield f"{'':6}  {'':{width}}  -> {finding.mend}"


def _guarded(name: str, look: Callable[[Config], Finding], config: Config) -> Finding:
    try:
        return look(config)
    except KartaError as error:
        return Finding(name, False, error.message, "See the message.")
    except OSError as error:
        return Finding(name, False, str(error), "Make it accessible, or choose another one with --state.")


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    least = ".".join(map(str, LEAST_PYTHON))
    good = sys.version_info >= LEAST_PYTHON
    return Finding("python", good, f"{found} at {sys.executable}", "" if good else f"Install Python {least} or newer.")


def _packages() -> Finding:
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
        own = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            "packages", False, f"{DISTRIBUTION} is not installed", "Run `make install`, or `pip install -e .`."
        )
    names = [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]
    missing = [name for name in names if not _installed(name)]
    if missing:
        return Finding("packages", False, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Finding("packages", True, f"{DISTRIBUTION} {own} and the {len(names)} packages that it needs")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


async def _harnesses(config: Config) -> list[Finding]:
    adapters = build_adapters(config)
    if config.harness and config.harness not in adapters:
        known = ", ".join(adapters)
        return [Finding("harness", False, f"{config.harness!r} is none that Karta knows", f"Use one of: {known}.")]
    chosen = config.harness or await registry.detect(config.project, adapters)
    findings = [await _harness(adapter, name == chosen) for name, adapter in adapters.items()]
    return [*findings, await _agents(adapters[chosen])]


async def _harness(adapter: HarnessAdapter, chosen: bool) -> Finding:
    name = f"harness {adapter.name}"
    try:
        async with asyncio.timeout(_DESCRIBE_SECONDS):
            found = await adapter.describe()
    except TimeoutError:
        found = v1.Harness(unavailable_reason=f"It did not say its version within {_DESCRIBE_SECONDS:g} s.")
    role = ", used by sessions that name none" if chosen else ""
    if found.available:
        # Whether the model's provider lets it in shows only when it asks.
        untried = "; whether its login works shows with the first turn" if chosen else ""
        return Finding(name, True, f"{found.version or 'available'}{role}{untried}", needed=chosen)
    return Finding(name, False, f"not available{role}", found.unavailable_reason, needed=chosen)


async def _agents(adapter: HarnessAdapter) -> Finding:
    names = [agent.name for agent in await adapter.agents()]
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return Finding("agents", True, shown or "none of the project; the harness's own answers", needed=False)


def _state(config: Config) -> Finding:
    state = config.state
    existing = next(folder for folder in (state, *state.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        mend = "Make it writable for you, or choose another one with --state."
        return Finding("state", False, f"{existing} cannot be written", mend)
    if holder := _holder(state):
        return Finding("state", True, f"{state}, served by process {holder}: clients join it")
    return Finding("state", True, f"{state}, {'free' if existing == state else 'made at the first start'}")


def _holder(state: Path) -> int | None:
    """The process that serves the state directory. Reads what the lock says: taking it would be in the way."""
    try:
        holder = int((state / "lock").read_text())
        os.kill(holder, 0)
    except PermissionError:
        return holder
    except (OSError, ValueError):
        return None
    return holder


def _schema(config: Config) -> Finding:
    from karta_server.storage.sql.schema import REVISIONS, current_and_head

    database = config.state / "karta.db"
    current, head = current_and_head(database)
    if not current:
        return Finding("schema", True, f"{head}, made at the first start")
    if current == head:
        return Finding("schema", True, f"{current}, the newest")
    if current in REVISIONS:
        return Finding("schema", True, f"{current}, brought to {head} at the next start", needed=False)
    mend = "Use the newer version of Karta that wrote it, or another state directory."
    return Finding("schema", False, f"{current}, newer than this version of Karta knows ({head})", mend)


def _disk(config: Config) -> Finding:
    existing = next(folder for folder in (config.state, *config.state.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    good = free >= LEAST_FREE_BYTES
    shown = f"{free // 2**20:,} MiB free at {existing}"
    return Finding("disk", good, shown, "" if good else f"Free at least {LEAST_FREE_BYTES // 2**20} MiB.")


def _address(config: Config) -> Finding:
    served = _served(config.state)
    if served:
        return Finding("address", True, f"a server of this folder serves on {served}", needed=False)
    if config.listen.startswith("unix:"):
        return Finding("address", True, config.listen, needed=False)
    host, _, port = config.listen.rpartition(":")
    try:
        family, kind, protocol, _name, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        mend = "Choose another address with --listen; port 0 takes any free one."
        return Finding("address", False, f"{config.listen}: {error.strerror}", mend, needed=False)
    return Finding("address", True, f"{config.listen} is free", needed=False)


def _served(state: Path) -> str:
    try:
        record = json.loads((state / "server.json").read_text())
        os.kill(int(record["pid"]), 0)
        return str(record["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
