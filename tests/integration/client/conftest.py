"""Projects on the scripted harness, and what runs in them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from project_programs import PlainServer, Programs, processes_of, wait_until


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Nothing of the machine but PATH."""
    home = tmp_path / "home"
    home.mkdir()
    keep = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    clean = {**keep, "HOME": str(home), "CLAUDE_CONFIG_DIR": str(home / ".claude"), "TMPDIR": str(home)}
    for key in list(os.environ):
        if key.startswith("KARTA_") or key in ("XDG_RUNTIME_DIR", "ANTHROPIC_API_KEY"):
            monkeypatch.delenv(key)
    for key, value in clean.items():
        monkeypatch.setenv(key, value)
    return clean


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A project folder whose server must be gone, with its sockets, at the end."""
    folder = tmp_path / "project"
    agents = folder / ".scripted" / "agents"
    agents.mkdir(parents=True)
    (agents / "billing.md").write_text("---\nname: billing\ndescription: Bills\n---\nYou bill.\n")
    (folder / "karta.jsonc").write_text('{"harness": {"name": "scripted"}, "drain_seconds": 0}')
    try:
        yield folder
        wait_until(lambda: not processes_of(folder), "the server is gone")
        left = [path for path in (folder / ".karta").glob("*") if path.name == "server.json" or path.is_socket()]
        assert left == []
    finally:
        for pid in processes_of(folder):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def programs(environment: dict[str, str]) -> Iterator[Programs]:
    made = Programs(environment)
    yield made
    made.close()


@pytest.fixture
def plain_server(project: Path, environment: dict[str, str]) -> Iterator[PlainServer]:
    server = PlainServer(project, environment)
    yield server
    server.stop()
