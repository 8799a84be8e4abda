import asyncio
import signal
import sys
from pathlib import Path

import pytest
from claude_harness import Claude, bash, run, said, script


async def start_host(claude: Claude, prompt: str) -> asyncio.subprocess.Process:
    arguments = [claude.project, claude.home, claude.root / "state", claude.model.url, prompt]
    host = Path(__file__).with_name("host.py")
    return await asyncio.create_subprocess_exec(sys.executable, host, *arguments, stdout=asyncio.subprocess.PIPE)


async def wait_for_line(host: asyncio.subprocess.Process, line: str) -> None:
    assert host.stdout is not None
    while (read := (await host.stdout.readline()).decode().strip()) != line:
        assert read, f"the host ended before {line}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["KILL", "TERM", "INT"])
async def test_nothing_outlives_the_process_that_hosts_it(claude: Claude, number: int) -> None:
    command = "setsid sleep 64 & (setsid sleep 65 &) ; sleep 66; touch made"
    host = await start_host(claude, script([bash(command)]))
    await wait_for_line(host, "step_finish")
    await claude.wait_for_processes(
        lambda now: all(any(f"sleep {n}" in line for line in now.values()) for n in (64, 65, 66))
    )

    host.send_signal(number)
    await host.wait()

    await claude.wait_for_processes(lambda now: not now)
    assert not (claude.project / "made").exists()


async def test_a_new_server_goes_on_with_the_conversation(claude: Claude) -> None:
    host = await start_host(claude, "one")
    await wait_for_line(host, "turn_finished")
    await host.wait()

    # This one has no memory of it: what Claude Code has under the session's id is found nevertheless.
    session = await claude.open(session_id="01920000-0000-7000-8000-00000000000a")
    assert said(await run(session, "two")) == "echo[2]: two"
