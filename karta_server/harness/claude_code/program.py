"""Finds Claude Code: the SDK, and the command line program that it drives."""

import asyncio
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from karta_server.harness.contract import HarnessSettings

PACKAGE = "claude_agent_sdk"
VERSION_SECONDS = 20.0

_INSTALL = "install it with pip install 'karta-grpc[claude]' (in a checkout: pip install -e '.[claude]')"


@dataclass(frozen=True)
class Program:
    """What was found; `missing` says what was not, and what to do about it."""

    path: Path | None = None
    missing: str = ""


def find_program(settings: HarnessSettings) -> Program:
    """Look for the SDK without importing it, and for its program.

    The program is `cli_path` of the options, else the one that the SDK brings,
    else `claude` on the PATH of the harness's environment.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return Program(missing=f"the Python package claude-agent-sdk was not found: {_INSTALL}")
    chosen = settings.options.get("cli_path")
    if chosen is not None:
        path = (settings.project / Path(str(chosen)).expanduser()).absolute()
        if os.access(path, os.X_OK) and path.is_file():
            return Program(path)
        return Program(missing=f"harness.claude_code.cli_path says {path}, which is not an executable file")
    bundled = Path(spec.origin).parent / "_bundled" / "claude"
    if bundled.is_file():
        return Program(bundled)
    search = settings.environment.get("PATH", os.defpath)
    found = shutil.which("claude", path=search)
    if found is not None:
        return Program(Path(found).absolute())
    return Program(missing=f"claude-agent-sdk brings no program here, and PATH ({search}) has no claude: {_INSTALL}")


async def program_version(program: Path, settings: HarnessSettings) -> str:
    """Return the version of the program; "" when it does not tell."""
    try:
        # The SDK writes down which version it brings; the program itself takes a while to say it.
        recorded = program.with_name("claude.version")
        if recorded.is_file():
            return recorded.read_text(encoding="utf-8").split()[0]
        return await _asked_version(program, settings)
    except (OSError, ValueError, IndexError, TimeoutError):
        return ""


async def _asked_version(program: Path, settings: HarnessSettings) -> str:
    process = await asyncio.create_subprocess_exec(
        program,
        "--version",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=dict(settings.environment),
        cwd=settings.project,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), VERSION_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode("utf-8", "replace").split()[0]
