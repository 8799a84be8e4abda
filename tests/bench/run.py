"""Runs comparisons, both sides in turns, and writes what was measured.

The exit code is 0 whatever the ratios are, and 1 when a row could not run or
a client found events missing.
"""

import argparse
import datetime as dt
import json
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import chart, profiler
from tests.bench.processes import ROOT, BenchError
from tests.bench.rows import Comparison, Metric, comparisons
from tests.bench.sides import SETTINGS, Sample

Pair = tuple[Sample, Sample]
_DURABILITY = "SQLite, WAL, synchronous=FULL; durable before visible"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say and return the exit code."""
    options = _options(arguments)
    chosen = _chosen(options.rows, quick=options.quick)
    rows: list[dict[str, Any]] = []
    failed = False
    for comparison in chosen:
        try:
            made = _compare(comparison, options)
        except BenchError as error:
            failed = True
            made = [_not_run(metric, str(error)) for metric in comparison.metrics]
        for row in made:
            print(_line(row), flush=True)  # noqa: T201
        rows += made
    results = {"machine": _machine(), "durability": _DURABILITY, "settings": SETTINGS, "quick": options.quick}
    results["rows"] = rows
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    chart.write(results, options.output.with_suffix(".svg"))
    if options.docs:
        chart.write_docs(results | {"rows": _all(rows, quick=options.quick)}, ROOT / "docs")
    return int(failed)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", default="", help="Only these, like P1,P4; all without it.")
    parser.add_argument("--quick", action="store_true", help="Smaller and fewer rounds, for a look.")
    parser.add_argument("--rounds", type=int, default=0, help="How often each side runs: 7, quick 3.")
    parser.add_argument("--output", type=Path, default=ROOT / "tests/bench/results/latest.json")
    parser.add_argument("--docs", action="store_true", help="Write docs/benchmarks.md and .svg too.")
    parser.add_argument("--profile", action="store_true", help="Profile Karta's server in one more round a row.")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else 7)
    return options


def _chosen(names: str, *, quick: bool) -> list[Comparison]:
    known = comparisons(quick=quick)
    if not names:
        return known
    wanted = set(names.split(","))
    if unknown := wanted - set().union(*(comparison.ids for comparison in known)):
        sys.exit(f"there is no row {', '.join(sorted(unknown))}")
    return [comparison for comparison in known if comparison.ids & wanted]


def _compare(comparison: Comparison, options: argparse.Namespace) -> list[dict[str, Any]]:
    ours, theirs = comparison.karta, comparison.peer
    with ExitStack() as stack:
        for side in (ours, theirs):
            stack.enter_context(side)
            side.open()
            side.run()  # Imports, caches, connections.
        pairs = [_round(comparison, number) for number in range(options.rounds)]
        if options.profile and (pid := ours.server_pid()):
            name = comparison.metrics[0].id
            profiler.profile(pid, ours.run, options.output.parent / f"profile-{name}.txt")
    return [_row(comparison, metric, pairs) for metric in comparison.metrics]


def _round(comparison: Comparison, number: int) -> Pair:
    """Run both sides; who is first changes."""
    if number % 2:
        theirs = comparison.peer.run()
        return comparison.karta.run(), theirs
    ours = comparison.karta.run()
    return ours, comparison.peer.run()


def _row(comparison: Comparison, metric: Metric, pairs: Sequence[Pair]) -> dict[str, Any]:
    ratios = [metric.ratio(*pair) for pair in pairs]
    ratio = median(ratios)
    sides = {}
    for name, side, samples in (
        ("karta", comparison.karta, [pair[0] for pair in pairs]),
        ("peer", comparison.peer, [pair[1] for pair in pairs]),
    ):
        raw = [sample.raw() for sample in samples]
        sides[name] = {
            "name": side.name,
            "median": median(map(metric.measure, samples)),
            "server_cpu_us": median(sample["server_cpu_us"] for sample in raw),
            "client_cpu_us": median(sample["client_cpu_us"] for sample in raw),
            "rounds": raw,
        }
    return _head(metric) | {
        "ratio": round(ratio, 4),
        "low": round(min(ratios), 4),
        "high": round(max(ratios), 4),
        "met": metric.met(ratio),
        "ratios": [round(each, 4) for each in ratios],
        **sides,
    }


def _head(metric: Metric) -> dict[str, Any]:
    bound = "at least" if metric.at_least else "at most"
    return {"id": metric.id, "name": metric.name, "unit": metric.unit, "target": metric.target, "bound": bound}


def _not_run(metric: Metric, why: str) -> dict[str, Any]:
    return _head(metric) | {"ratio": None, "low": None, "high": None, "met": False, "not_run": why}


def _all(rows: Sequence[dict[str, Any]], *, quick: bool) -> list[dict[str, Any]]:
    """Return a row for every metric there is."""
    made = {row["id"]: row for row in rows}
    metrics = [metric for comparison in comparisons(quick=quick) for metric in comparison.metrics]
    return [made.get(metric.id) or _not_run(metric, "left out of this run") for metric in metrics]


def _line(row: dict[str, Any]) -> str:
    sign = ">=" if row["bound"] == "at least" else "<="
    if row["ratio"] is None:
        return f"{row['id']:<10} not run: {row['not_run']}"
    ours, theirs = row["karta"], row["peer"]
    return (
        f"{row['id']:<10} {row['ratio']:6.2f} ({row['low']:.2f}-{row['high']:.2f}) target {sign} {row['target']:g} "
        f"{'met   ' if row['met'] else 'MISSED'}  {row['name']}\n"
        f"{'':<10} {ours['name']}: {ours['median']:,.6g} {row['unit']}, "
        f"CPU us server {ours['server_cpu_us']:.1f} client {ours['client_cpu_us']:.1f}; "
        f"{theirs['name']}: {theirs['median']:,.6g}, "
        f"CPU us server {theirs['server_cpu_us']:.1f} client {theirs['client_cpu_us']:.1f}"
    )


def _machine() -> dict[str, Any]:
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "karta": version("karta-grpc"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
