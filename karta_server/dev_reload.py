"""Noticing that somebody edits the agents of a project."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

from watchfiles import awatch

AGENT_FOLDERS = (".claude/agents", ".opencode/agents", ".scripted/agents")
FILES = ("CLAUDE.md", "karta.jsonc")
MAX_FILES = 1000
_LOOK_AGAIN_MILLISECONDS = 1000

Snapshot = dict[str, tuple[int, int]]


async def changes(project: Path) -> AsyncGenerator[set[str], None]:
    """Yield the paths, relative to the project, that were made, changed or removed; never ends by itself.

    What counts is the difference of two looks at the files. The watch only says
    when to look, so a folder that is made later, or a change before the watch
    began, is not missed, only seen up to a second later.
    """
    seen = snapshot(project)
    while True:
        folders = _folders(project)
        watching = awatch(
            *folders,
            recursive=False,
            watch_filter=None,
            debounce=200,
            rust_timeout=_LOOK_AGAIN_MILLISECONDS,
            yield_on_timeout=True,
        )
        async with aclosing(watching):
            async for _ in watching:
                now = snapshot(project)
                changed = {path for path in seen.keys() | now.keys() if seen.get(path) != now.get(path)}
                seen = now
                if changed:
                    yield changed
                if _folders(project) != folders:
                    break


def snapshot(project: Path) -> Snapshot:
    """Return time and size of the files that matter, the first MAX_FILES of them."""
    found: Snapshot = {}
    for path in _files(project):
        try:
            status = path.stat()
        except OSError:
            continue
        found[str(path.relative_to(project))] = (status.st_mtime_ns, status.st_size)
        if len(found) == MAX_FILES:
            break
    return found


def _files(project: Path) -> Iterator[Path]:
    for name in FILES:
        yield project / name
    for name in AGENT_FOLDERS:
        yield from sorted((project / name).rglob("*.md"))


def _folders(project: Path) -> list[Path]:
    """Return the folders in which something that matters can appear."""
    found = [project]
    for name in AGENT_FOLDERS:
        agents = project / name
        found += [folder for folder in (agents.parent, agents, *sorted(agents.rglob("*/"))) if folder.is_dir()]
    return list(dict.fromkeys(found))[:MAX_FILES]
