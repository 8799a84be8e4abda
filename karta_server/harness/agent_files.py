"""Agents as Markdown files with front matter, the way several harnesses keep them."""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import frontmatter
import yaml

MAX_FILES = 1000
MAX_FILE_BYTES = 1024 * 1024

_log = logging.getLogger(__name__)
_LINE = re.compile(r"([A-Za-z][\w-]*):(?:\s+(.*))?")


@dataclass(frozen=True)
class AgentFile:
    """A file that defines an agent."""

    path: Path
    metadata: dict[str, Any]
    """Its front matter."""

    @property
    def json(self) -> str:
        """The whole front matter as JSON text; dates and the like as text."""
        return json.dumps(self.metadata, ensure_ascii=False, default=str)

    def text(self, key: str) -> str:
        """Return a value of the front matter as one piece of text, "" when it has none."""
        value = self.metadata.get(key)
        return value.strip() if isinstance(value, str) else ""

    def texts(self, key: str) -> list[str]:
        """Return a value that is a list, or text with commas, as a list."""
        value = self.metadata.get(key)
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
        return [text for item in items if (text := str(item).strip())]


def read_agent_files(folder: Path) -> list[AgentFile]:
    """Return the agent files in a folder and those below it, by path; none when there is no folder.

    A file that cannot be read is left out and logged, and so is what goes
    beyond MAX_FILES and MAX_FILE_BYTES.
    """
    paths = sorted(path for path in folder.rglob("*.md") if path.is_file())
    if len(paths) > MAX_FILES:
        _log.warning("%s holds %d agents; only the first %d are read", folder, len(paths), MAX_FILES)
    return [file for path in paths[:MAX_FILES] if (file := _read(path)) is not None]


def _read(path: Path) -> AgentFile | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
        return AgentFile(path, _metadata(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        _log.warning("%s is not read as an agent: %s", path, error)
        return None


def _metadata(text: str) -> dict[str, Any]:
    try:
        return dict(frontmatter.loads(text).metadata)
    except yaml.YAMLError:
        # Descriptions with a bare colon are no YAML, but harnesses take them, and people write them.
        lines = _plain_lines(text)
        if lines is None:
            raise
        return lines


def _plain_lines(text: str) -> dict[str, Any] | None:
    """Read front matter that is nothing but lines of `key: value`."""
    parts = text.split("---", 2)
    if len(parts) != 3 or parts[0].strip():
        return None
    matches = [_LINE.fullmatch(line.rstrip()) for line in parts[1].splitlines() if line.strip()]
    return {match[1]: match[2] or "" for match in matches if match} if all(matches) else None
