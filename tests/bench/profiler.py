"""Where a server's time goes: samples of py-spy while a side runs."""

import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from tests.bench import venvs

_ROWS = 50
# Leaves of stacks that wait for work.
_WAITING = ("_connection_worker_thread ", "Thread.run ", "Writer._take ", "EpollSelector.select ", "_worker ")
_SAMPLES_A_SECOND = 250


def profile(pid: int, run: Callable[[], object], output: Path, rounds: int = 4) -> None:
    """Run a side some times while its server is sampled, and write a table of functions."""
    output.parent.mkdir(parents=True, exist_ok=True)
    raw = output.with_suffix(".raw")
    tool = venvs.python("tools").parent / "py-spy"
    command = [str(tool), "record", "--pid", str(pid), "--format", "raw", "--output", str(raw)]
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
    """Return tables for every thread that did something, as parts of what it did."""
    threads: dict[str, list[tuple[list[str], int]]] = defaultdict(list)
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if frames:
            threads[thread.partition(": ")[2] or thread].append((frames, int(count)))
    return "\n".join(_thread(name, stacks) for name, stacks in threads.items())


def _thread(name: str, stacks: list[tuple[list[str], int]]) -> str:
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    waiting = 0
    for frames, count in stacks:
        if frames[-1].startswith(_WAITING):
            waiting += count
            continue
        lines[frames[-1]] += count
        own[frames[-1].rpartition(":")[0]] += count
        for function in {frame.rpartition(":")[0] for frame in frames}:
            within[function] += count
    busy = own.total()
    text = f"{name}: {busy} samples busy, {waiting} waiting\n"
    if busy * 20 > waiting:
        text += f"\nown time, by line\n{_table(lines, busy)}\nown time, by function\n{_table(own, busy)}"
        text += f"\nwith what is called, by function\n{_table(within, busy)}"
    return text


def _table(counts: Counter[str], total: int) -> str:
    return "".join(f"{count / total:7.1%}  {name}\n" for name, count in counts.most_common(_ROWS))
