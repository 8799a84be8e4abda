"""A server in a process of its own that answers questions about itself on its standard input.

    python launcher.py PROJECT [--block SECONDS]

It prints READY and its address, then a line of JSON for each line that it reads:
`lag` (seconds by which the event loop was late, since the last time it was asked) and
`counts` (living objects by their class). With `--block`, lists of sessions
block the event loop for so long: the defect that the test of the lag is there for.
"""

import asyncio
import gc
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from karta_server.config import load
from karta_server.core.sessions import Sessions
from karta_server.server import Server

SAMPLE_SECONDS = 0.005


class Lag:
    """How late the event loop comes back to a task that sleeps."""

    def __init__(self) -> None:
        self._late: list[float] = []

    async def sample(self) -> None:
        while True:
            due = time.monotonic() + SAMPLE_SECONDS
            await asyncio.sleep(SAMPLE_SECONDS)
            self._late.append(max(0.0, time.monotonic() - due))

    def report(self) -> dict[str, float]:
        late, self._late = sorted(self._late), []
        return {"samples": len(late), "max": late[-1], "p99": late[int(len(late) * 0.99)], "p50": late[len(late) // 2]}


def counts() -> dict[str, int]:
    gc.collect()
    return dict(Counter(f"{type(thing).__module__}.{type(thing).__name__}" for thing in gc.get_objects()))


def block_lists(seconds: float) -> None:
    """Do what no handler may do."""
    page = Sessions.page

    async def blocking(self: Sessions, *arguments: Any) -> Any:
        time.sleep(seconds)  # noqa: ASYNC251
        return await page(self, *arguments)

    Sessions.page = blocking  # type: ignore[method-assign]


async def main() -> None:
    project = Path(sys.argv[1])
    if "--block" in sys.argv:
        block_lists(float(sys.argv[-1]))
    config = load(project, listen="127.0.0.1:0", harness="scripted")
    config.state.mkdir(exist_ok=True)
    server = Server(config)
    print("READY", await server.start(), flush=True)  # noqa: T201
    lag = Lag()
    sampling = asyncio.create_task(lag.sample())
    questions = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    answers = {b"lag\n": lag.report, b"counts\n": counts}
    while question := await questions.readline():
        print(json.dumps(answers[question]()), flush=True)  # noqa: T201
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
