"""One turn with very many watchers, and others that watch where nothing happens."""

# Figures and seeds are printed: pytest shows them with -s, and when a test fails.
# ruff: noqa: T201

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from launched import memory_mib
from serving import dev_serve

CLIENTS = Path(__file__).with_name("watch_clients.py")
SAMPLE_SECONDS = 0.2
# Two streams a watcher, with gRPC's own state.
MIB_A_WATCHER = 0.35
MIB_BASE = 80


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
    first; the server's memory is bounded, and a second time needs no more of it."""
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
        (first_peak, first_after), (second_peak, second_after) = figures
        assert first_peak - before < MIB_BASE + MIB_A_WATCHER * watchers
        assert second_peak < first_peak * 1.15 + 10, "a second time needs more"
        assert second_after < first_after * 1.15 + 10, "what watchers left stays"


def check(result: dict[str, Any], watchers: int) -> None:
    results = result["results"]
    assert len(results) == watchers + 2
    assert all(each == results[0] for each in results), {tuple(each) for each in results}
    assert results[0][0] >= 206, "not all of the turn came"
    assert result["cuts"] >= 2, "nobody was cut off"
    assert result["idle_woken"] >= 20
