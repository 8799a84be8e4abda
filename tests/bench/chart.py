"""Draws results: an SVG of each row's ratio against its target, and the table of docs/benchmarks.md."""

from html import escape
from math import inf
from pathlib import Path
from typing import Any

_WIDTH, _ROW, _NAME, _LEFT, _RIGHT, _TOP = 960, 30, 84, 470, 120, 56
_FULL = 2.5
"""What of the target fills the width; longer bars are cut, and end in a point."""
_SHOWN = {"s, p50": (1e3, "ms"), "CPU s": (1e3, "ms CPU"), "CPU s/event": (1e6, "µs CPU"), "bytes": (1 / 1024, "KiB")}
"""How a table shows a unit: times what, and as what; others as they are."""
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 15px; font-weight: 600; }
.faint { fill: #656d76; }
.met { fill: #1a7f37; }
.missed { fill: #bc4c00; }
.line { stroke: #24292f; stroke-width: 1.5; }
.target { stroke: #656d76; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .faint { fill: #8d96a0; }
  .met { fill: #3fb950; }
  .missed { fill: #db6d28; }
  .line { stroke: #e6edf3; }
  .target { stroke: #8d96a0; }
}
"""


def write(results: dict[str, Any], path: Path) -> None:
    """Write the picture."""
    rows = results["rows"]
    height = _TOP + _ROW * len(rows) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        f' role="img" aria-label="Benchmarks of Karta against their targets"><style>{_STYLE}</style>',
        _text(12, 22, "How far each row is, as a part of its target", "title"),
        _text(12, 42, _machine(results), "faint"),
        *(_bar(row, _TOP + _ROW * number) for number, row in enumerate(rows)),
        _line(_x(1), _TOP - 6, _x(1), height - 20, "target"),
        _text(_x(1), height - 6, "target", "faint", "middle"),
        "</svg>\n",
    ]
    path.write_text("\n".join(parts))


def write_docs(results: dict[str, Any], folder: Path) -> None:
    """Write benchmarks.svg and benchmarks.md."""
    folder.mkdir(exist_ok=True)
    write(results, folder / "benchmarks.svg")
    rows = "\n".join(_cells(row) for row in results["rows"])
    (folder / "benchmarks.md").write_text(
        f"""# Benchmarks

Measured by `make bench`: {_machine(results)}.

Each row compares two sides in one interleaved run, on the same machine and with the same payload:
the ratio is the median of its rounds, the spread its lowest and highest round.
Absolute figures are of this machine alone. Karta writes its log as it does by default
({results["durability"]}).

![Each row as a part of its target](benchmarks.svg)

| id | what is compared | ratio | spread | target | met | Karta | peer |
|---|---|---|---|---|---|---|---|
{rows}
"""
    )


def progress(row: dict[str, Any], ratio: float) -> float:
    """Return how far a ratio is: 1 is the target, more is better."""
    if row["bound"] == "at most" and ratio <= 0:
        return inf
    done: float = ratio / row["target"] if row["bound"] == "at least" else row["target"] / ratio
    return done


def _bar(row: dict[str, Any], top: int) -> str:
    middle = top + _ROW / 2
    name = _text(12, middle + 4, row["id"]) + _text(_NAME, middle + 4, row["name"])
    if row["ratio"] is None:
        return name + _text(_LEFT + 6, middle + 4, "not run", "faint")
    end = _x(progress(row, row["ratio"]))
    ends = sorted(_x(progress(row, row[name])) for name in ("low", "high"))
    sign = "\u2265" if row["bound"] == "at least" else "\u2264"
    return "".join(
        (
            name,
            f'<rect class="{"met" if row["met"] else "missed"}" x="{_LEFT}" y="{top + 7}" '
            f'width="{end - _LEFT:.1f}" height="{_ROW - 14}" rx="2"/>',
            _line(ends[0], middle, ends[1], middle, "line"),
            *(_line(x, middle - 4, x, middle + 4, "line") for x in ends if x < _x(_FULL)),
            _point(row, top) if end == _x(_FULL) else "",
            _text(_WIDTH - _RIGHT + 10, middle + 4, f"{row['ratio']:.2f} ({sign} {row['target']:g})"),
        )
    )


def _point(row: dict[str, Any], top: int) -> str:
    """Return the end of a bar that is longer than the picture."""
    kind = "met" if row["met"] else "missed"
    return f'<path class="{kind}" d="M{_x(_FULL) - 2:.1f},{top + 7} l9,{_ROW / 2 - 7} l-9,{_ROW / 2 - 7} z"/>'


def _cells(row: dict[str, Any]) -> str:
    sign = "\u2265" if row["bound"] == "at least" else "\u2264"
    target = f"{sign} {row['target']:g}"
    if row["ratio"] is None:
        why = row["not_run"].splitlines()[0].replace("|", "\\|")
        return f"| {row['id']} | {row['name']} | not run: {why} | | {target} | | | |"
    spread = f"{row['low']:.2f} to {row['high']:.2f}"
    met = "yes" if row["met"] else "no"
    sides = " | ".join(_figure(row[side]["median"], row["unit"]) for side in ("karta", "peer"))
    return f"| {row['id']} | {row['name']} | {row['ratio']:.2f} | {spread} | {target} | {met} | {sides} |"


def _figure(value: float, unit: str) -> str:
    times, name = _SHOWN.get(unit, (1, unit))
    shown = value * times
    return f"{shown:,.0f} {name}" if abs(shown) >= 100 else f"{shown:.3g} {name}"


def _machine(results: dict[str, Any]) -> str:
    it = results["machine"]
    parts = [it["date"], it["processor"], f"{it['cores']} cores", it["system"], f"Python {it['python']}"]
    parts += [f"grpcio {it['grpcio']}", "quick run" if results["quick"] else ""]
    return ", ".join(filter(None, parts))


def _x(part: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(part, _FULL) / _FULL


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
