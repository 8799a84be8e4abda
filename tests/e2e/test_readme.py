"""README.md tells the truth: its programs and commands run, with the real Claude Code and the offline model."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from karta_server.testing.offline_model import OfflineModel, offline_environment

README = (Path(__file__).parents[2] / "README.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
AGENT = "---\nname: billing-specialist\ndescription: Knows invoices.\n---\nYou are the billing specialist.\n"
WRITE = [[{"tool": "Write", "input": {"file_path": "{project}/hello.txt", "content": "hello\n"}}], [{"text": "Done."}]]
ADDRESS = "127.0.0.1:7400"
LIMIT_SECONDS = 50.0


class Machine:
    """A project folder and what a user has besides: a shell, a login (to the offline model), Karta."""

    def __init__(self, folder: Path, model: OfflineModel) -> None:
        self.model = model
        self.project = folder / "project"
        (self.project / ".claude" / "agents").mkdir(parents=True)
        (self.project / ".claude" / "agents" / "billing-specialist.md").write_text(AGENT)
        self.environment = offline_environment(folder / "home", model.url)
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{self.environment['PATH']}"

    async def run(self, *command: str) -> str:
        """Run a command in the project and return what it printed; it must succeed."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.project,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), LIMIT_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"{command}\n{out.decode()}\n{err.decode()}"
        return out.decode()

    def scripted(self, text: str, said: str, calls: list[list[dict[str, object]]]) -> str:
        """Return a text with a script behind what is said in it."""
        assert said in text
        script = json.dumps(calls).replace("{project}", str(self.project))
        return text.replace(said, f"{said} SCRIPT:{script}END")


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with OfflineModel() as model:
        yield Machine(tmp_path, model)


def program(containing: str) -> str:
    (found,) = (text for text in PROGRAMS if containing in text)
    return found


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
async def test_each_program_runs(machine: Machine, number: int) -> None:
    printed = await machine.run(sys.executable, "-c", PROGRAMS[number])
    assert "echo[" in printed or "print" not in PROGRAMS[number]


async def test_the_session_is_the_same_one(machine: Machine) -> None:
    assert "echo[2]: Any updates?" in await machine.run(sys.executable, "-c", program("Any updates?"))


async def test_the_handoff_and_the_name_reach_the_model(machine: Machine) -> None:
    await machine.run(sys.executable, "-c", program("HumanAgent"))
    asked = [json.dumps(request) for request in machine.model.requests]
    assert any("Alice Chen: I need help with invoice #789" in request for request in asked)
    assert "You are the billing specialist." in json.dumps(machine.model.requests[-1]["system"])
    assert "Check it, please" in asked[-1]


async def test_the_callback_decides(machine: Machine) -> None:
    text = program("haiku.txt")
    said = "Write a haiku into haiku.txt"
    write = [[{"tool": "Write", "input": {"file_path": "{project}/haiku.txt", "content": "x"}}], [{"text": "Done."}]]
    await machine.run(sys.executable, "-c", _quoted(machine.scripted(text, said, write)))
    assert (machine.project / "haiku.txt").exists()
    bash = [[{"tool": "Bash", "input": {"command": "touch no.txt"}}], [{"text": "Well."}]]
    await machine.run(sys.executable, "-c", _quoted(machine.scripted(text, said, bash)))
    assert not (machine.project / "no.txt").exists()
    assert "Use the files that are there." in json.dumps(machine.model.requests[-1]["messages"])


async def test_the_terminal_commands_run(machine: Machine) -> None:
    (block,) = (text for text in COMMANDS if "kartactl send" in text)
    lines = [line for line in block.splitlines() if line.startswith("kartactl")]
    assert len(lines) == 4
    for line in lines:
        await machine.run("bash", "-c", line)
    report = await machine.run("karta-runtime", "doctor")
    assert "claude_code" in report


async def test_an_approval_by_hand_over_reflection(machine: Machine) -> None:
    (block,) = (text for text in COMMANDS if "buf curl" in text)
    (serve,) = (text for text in COMMANDS if "dev-serve" in text)
    script = [[WRITE[0][0]], WRITE[1]]
    block = block.replace("Write hello.txt", _in_json(machine.scripted("Write hello.txt", "Write hello.txt", script)))
    server = await asyncio.create_subprocess_exec(
        *serve.replace(ADDRESS, "127.0.0.1:0").split(),
        cwd=machine.project,
        env=machine.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert server.stdout is not None
        line = (await asyncio.wait_for(server.stdout.readline(), LIMIT_SECONDS)).decode()
        address = line.split(" on ")[1].split()[0]
        printed = await machine.run("bash", "-euo", "pipefail", "-c", block.replace(ADDRESS, address))
    finally:
        server.terminate()
        await asyncio.wait_for(server.wait(), LIMIT_SECONDS)
    for expected in (
        "karta.v1.SessionService/CreateSession",
        "TURN_STATE_INPUT_REQUIRED",
        "INPUT_STATE_ANSWERED",
        "echo[2]: Thank you",
        '"turnFinished"',
        '"messageReceived"',
    ):
        assert expected in printed, printed
    assert (machine.project / "hello.txt").read_text() == "hello\n"


def _quoted(text: str) -> str:
    """Give the program's string, which now holds quotes, other quotes of its own."""
    return re.sub(r'send_sync\("(.*)"\)', lambda match: f"send_sync({match.group(1)!r})", text)


def _in_json(text: str) -> str:
    """Return text as it stands between the quotes of JSON in single quotes of the shell."""
    return json.dumps(text)[1:-1].replace("'", "'\\''")


async def test_the_settings_are_settings(machine: Machine) -> None:
    (settings,) = re.findall(r"^```jsonc\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (machine.project / "karta.jsonc").write_text(settings)
    assert "echo[1]" in await machine.run("kartactl", "send", "who answers?")
    assert "You are the billing specialist." in json.dumps(machine.model.requests[-1]["system"])
