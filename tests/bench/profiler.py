"""Where a server's time goes: samples of py-spy while a side runs."""

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.bench import venvs

_ROWS = 45
_SAMPLES_A_SECOND = 400


def profile(pid: int, run: Callable[[], object], output: Path, rounds: int = 4) -> None:
    """Run a side some times while its server is sampled, and write a table of functions."""
    output.parent.mkdir(parents=True, exist_ok=True)
    raw = output.with_suffix(".raw")
    tool = venvs.python("tools").parent / "py-spy"
    command = [str(tool), "record", "--pid", str(pid), "--format", "raw", "--output", str(raw), "--nonblocking"]
    command += ["--rate", str(_SAMPLES_A_SECOND), "--threads", "--duration", "600"]
    sampler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(rounds):
            run()
    finally:
        sampler.send_signal(2)
        sampler.wait(60)
    output.write_text(_report(raw.read_text()))
    raw.unlink()


def _report(raw: str) -> str:
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    threads: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        threads[thread] += int(count)
        own[frames[-1]] += int(count)
        for name in {frame.rpartition(":")[0] for frame in frames}:
            within[name] += int(count)
    total = sum(threads.values())
    parts = [f"{total} samples\n\nthreads\n{_table(threads, total)}"]
    parts.append(f"own time, by line\n{_table(own, total)}")
    parts.append(f"with what is called, by function\n{_table(within, total)}")
    return "\n".join(parts)


def _table(counts: Counter[str], total: int) -> str:
    return "".join(f"{count / total:7.1%}  {name}\n" for name, count in counts.most_common(_ROWS))
