"""What a process of Claude Code reads only at its start: a change of it needs a new process."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from karta_server.harness.claude_code.agents import config_folder
from karta_server.harness.contract import HarnessSettings

MAX_FILES = 1000

_FILES = (
    "CLAUDE.md",
    "CLAUDE.local.md",
    "AGENTS.md",
    ".mcp.json",
    ".claude/CLAUDE.md",
    ".claude/settings.json",
    ".claude/settings.local.json",
)
_PATTERNS = (".claude/agents/**/*.md", ".claude/skills/*/SKILL.md")

Stamp = tuple[tuple[str, int, int], ...]


def stamp(settings: HarnessSettings) -> Stamp:
    """Return name, time and size of each file; equal as long as nothing changed. Reads the file system."""
    own = config_folder(settings)
    paths = [*_project_files(settings.project), *(own.glob("agents/**/*.md") if own else ())]
    return tuple(sorted(_stamps(islice(paths, MAX_FILES))))


def _project_files(project: Path) -> Iterator[Path]:
    yield from (project / name for name in _FILES)
    for pattern in _PATTERNS:
        yield from project.glob(pattern)


def _stamps(paths: Iterator[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue
        yield str(path), found.st_mtime_ns, found.st_size
