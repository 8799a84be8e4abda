"""`python -m tests.bench.clients module:Scenario '{"parameters": …}'`: run a scenario once for each line of input."""

import asyncio
import importlib
import json
import sys
import time
import traceback
from typing import Any


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _main(name: str, parameters: dict[str, Any]) -> None:
    module, _, attribute = name.partition(":")
    scenario = getattr(importlib.import_module(f"tests.bench.clients.{module}"), attribute)(**parameters)
    loop = asyncio.get_running_loop()
    try:
        await scenario.open()
        _say({})
        while await loop.run_in_executor(None, sys.stdin.readline):
            before = time.process_time()
            measured = await scenario.run()
            _say(measured | {"client_cpu": time.process_time() - before})
    except Exception as error:
        traceback.print_exc()
        _say({"error": f"{type(error).__name__}: {error}"})
    finally:
        await scenario.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], json.loads(sys.argv[2])))
