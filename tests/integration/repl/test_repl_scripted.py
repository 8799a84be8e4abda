"""The REPL without a terminal: it reads lines and ends with them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal_program import Start

ASKS = 'SCRIPT:[[{"tool":"Bash","input":{"command":"x"}}],[{"text":"done"}]]END'

Dev = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def dev(start: Start, project: Path, environment: dict[str, str]) -> Dev:
    """Run the REPL on lines; `start` sees to it that its server is gone at the end."""

    def run(*args: str, lines: list[str], code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "karta_server.cli", "dev", *args],
            cwd=project,
            env=environment,
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def test_lines_are_turns_and_commands(dev: Dev) -> None:
    done = dev(lines=["hello", "", "/agent billing", "who", ASKS, "y", "/usage"])
    shown = done.stdout
    for text in ("echo[1]: hello", "handoff from", "billing: echo[2]: who", "n deny] y", "allowed once", "done"):
        place = shown.find(text)
        assert place >= 0, done.stdout
        shown = shown[place:]
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_a_file_as_input(dev: Dev, project: Path, environment: dict[str, str]) -> None:
    (project / "lines").write_text("hello\n/quit\nnever said\n")
    with (project / "lines").open() as lines:
        done = subprocess.run(
            [sys.executable, "-m", "karta_server.cli", "dev", "."],
            cwd=project,
            env=environment,
            stdin=lines,
            capture_output=True,
            text=True,
            timeout=40,
            check=True,
        )
    assert "echo[1]: hello" in done.stdout
    assert "never said" not in done.stdout


def test_the_end_of_the_input_leaves_what_waits(dev: Dev) -> None:
    assert "n deny]" not in dev(lines=[ASKS], code=3).stdout


def test_options(dev: Dev, tmp_path: Path) -> None:
    first = dev("--agent", "billing", "--harness", "scripted", lines=["hi"]).stdout
    assert "billing: echo[1]: hi" in first
    session = first.split("session ")[1].split(" ")[0]
    assert "echo[2]: more" in dev("--session", session, lines=["more"]).stdout
    assert "echo[1]: new" in dev("--new", lines=["new"]).stdout
    assert "echo[1]: elsewhere" in dev("--state", str(tmp_path / "state"), lines=["elsewhere"]).stdout
    assert "echo[2]: again" in dev("--state", str(tmp_path / "state"), lines=["again"]).stdout
    assert (tmp_path / "state" / "karta.db").exists()


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [(["--agent", "nobody"], 4, "AGENT_NOT_FOUND"), (["--session", "nonsense"], 5, "FIELD_INVALID")],
)
def test_errors(dev: Dev, args: list[str], code: int, reason: str) -> None:
    assert dev(*args, lines=[], code=code).stderr.startswith(f"karta-runtime dev: {reason}: ")


def test_a_server_that_does_not_start(dev: Dev, project: Path) -> None:
    (project / "karta.jsonc").write_text("{nonsense")
    done = dev(lines=[], code=6)
    assert "EMBEDDED_SERVER_FAILED" in done.stderr
    assert "karta.jsonc" in done.stderr


def test_it_serves_its_own_folder_whatever_the_environment_says(dev: Dev, environment: dict[str, str]) -> None:
    environment["KARTA_TARGET"] = "127.0.0.1:1"
    assert "echo[1]: hi" in dev(lines=["hi"]).stdout
