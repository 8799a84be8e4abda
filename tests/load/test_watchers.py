"""One turn with very many watchers, and others that watch where nothing happens."""

# Figures and seeds are printed: pytest shows them with -s, and when a test fails.
# ruff: noqa: T201

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
from launched import memory_mib
from server_api import Api
from serving import dev_serve
from watch_clients import SMALL_WINDOW

from karta import v1

CLIENTS = Path(__file__).with_name("watch_clients.py")
SAMPLE_SECONDS = 0.2
# On its way to a watcher is one frame of up to half a MiB; gRPC has state of its own for a watcher's two streams.
MIB_A_WATCHER = 0.6
MIB_BASE = 80
SLOW = 40
SLOW_TURNS = 60
SLOW_TEXT_BYTES = 200_000


async def watch(environment: dict[str, str], address: str, count: int, pid: int) -> tuple[dict[str, Any], float]:
    """Run the clients in a process of their own; return what they say, and the server's peak meanwhile."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CLIENTS), address, str(count)), env=environment, stdout=asyncio.subprocess.PIPE
    )
    reading = asyncio.create_task(process.communicate())
    peak = 0.0
    try:
        while not reading.done():
            peak = max(peak, memory_mib(pid))
            await asyncio.wait({reading}, timeout=SAMPLE_SECONDS)
        output, _ = await reading
        assert process.returncode == 0
        return json.loads(output), peak
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def settled(pid: int) -> float:
    """Return a process's memory once it does not fall any more; it may take a while to see that clients are gone."""
    lowest, since = memory_mib(pid), 0
    while since < 5:
        await asyncio.sleep(SAMPLE_SECONDS)
        now = memory_mib(pid)
        lowest, since = (now, 0) if now < lowest - 0.5 else (lowest, since + 1)
    return lowest


async def test_nothing_is_lost_and_nobody_waits_for_the_slow(
    project: Path, environment: dict[str, str], watchers: int
) -> None:
    """The fault: a watcher that never reads, one that disconnects every second, among very many. What is proved:
    all get the same events in the same order; the fast ones have everything before the slow one has read its
    first; the server's memory stays below the same bound the first and the second time."""
    (project / "karta.jsonc").write_text(json.dumps({"limits": {"max_open_streams": 2 * watchers + 50}}))
    with dev_serve(project, environment, "--listen", "127.0.0.1:0", "--log-level", "warning") as served:
        pid = served.process.pid
        before = memory_mib(pid)
        figures = []
        for _ in range(2):
            result, peak = await watch(environment, served.address, watchers, pid)
            figures.append((peak, await settled(pid)))
            check(result, watchers)
            print(
                f"\n{watchers} watchers, {watchers} idle: memory {before:.0f} MiB before, {peak:.0f} peak, "
                f"{figures[-1][1]:.0f} after; late p50 {result['late_p50'] * 1000:.0f} ms, "
                f"p99 {result['late_p99'] * 1000:.0f} ms, max {result['late_max'] * 1000:.0f} ms; "
                f"{result['cuts']} cuts; the slow one read all in {result['slow_seconds_behind']:.2f} s"
            )
        # The allocator gives back more or less of it, so the second peak is held to the same bound, not to the first.
        for peak, _ in figures:
            assert peak - before < MIB_BASE + MIB_A_WATCHER * watchers


async def test_what_nobody_reads_is_not_kept(project: Path, environment: dict[str, str]) -> None:
    """The fault: clients that open streams and never read them. What is proved: the server holds a frame or so for
    each and not all that it has for them, which is more than ten times the bound."""
    with dev_serve(project, environment, "--listen", "127.0.0.1:0", "--log-level", "warning") as served:
        async with grpc.aio.insecure_channel(served.address) as channel:
            api = Api(channel)
            session = await api.create()
            await api.send(session, "warm up")
            before = memory_mib(served.process.pid)
            channels = [
                grpc.aio.insecure_channel(served.address, options=[*SMALL_WINDOW, ("number", number)])
                for number in range(SLOW)
            ]
            watch = v1.WatchSessionRequest(session_id=session.session_id, follow=True)
            streams = [Api(each).sessions.WatchSession(watch) for each in channels]
            for stream in streams:
                await stream.read()
            peak = 0.0
            for _ in range(SLOW_TURNS):
                await api.send(session, "x" * SLOW_TEXT_BYTES)
                peak = max(peak, memory_mib(served.process.pid))
            size = sum(event.ByteSize() for event in await api.events(session)) / 2**20
            for each in channels:
                await each.close()
    print(f"\n{SLOW} streams that nobody reads, {size:.0f} MiB for each: {before:.0f} MiB before, {peak:.0f} peak")
    assert size * SLOW > 10 * (MIB_BASE + MIB_A_WATCHER * SLOW), "that is no load"
    assert peak - before < MIB_BASE + MIB_A_WATCHER * SLOW


def check(result: dict[str, Any], watchers: int) -> None:
    results = result["results"]
    assert len(results) == watchers + 2
    assert all(each == results[0] for each in results), {tuple(each) for each in results}
    assert results[0][0] >= 206, "not all of the turn came"
    assert result["cuts"] >= 2, "nobody was cut off"
    assert result["idle_woken"] >= 20
