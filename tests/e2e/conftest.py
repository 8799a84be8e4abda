"""A server on the real Claude Code, whose model is the offline one."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from server_api import Api
from serving import Served, dev_serve

from karta_server.testing.offline_model import OfflineModel, offline_environment

AGENTS = {
    "billing": "---\nname: billing\ndescription: Knows invoices.\ntools: Read\n---\nYou are the billing agent.\n",
    "poet": "---\nname: poet\ndescription: Answers in verse.\nmodel: haiku\n---\nYou are the poet.\n",
}


@pytest.fixture
async def model() -> AsyncIterator[OfflineModel]:
    async with OfflineModel() as running:
        yield running


@pytest.fixture
def offline(tmp_path: Path, model: OfflineModel) -> dict[str, str]:
    """The whole environment of a server and its Claude Code."""
    return offline_environment(tmp_path / "home", model.url)


@pytest.fixture
def agents_project(project: Path) -> Path:
    """A project with two agents."""
    folder = project / ".claude" / "agents"
    folder.mkdir(parents=True)
    for name, text in AGENTS.items():
        (folder / f"{name}.md").write_text(text)
    return project


@pytest.fixture
def claude(agents_project: Path, offline: dict[str, str]) -> Iterator[Served]:
    with dev_serve(agents_project, offline, "--listen", "127.0.0.1:0", "--harness", "claude_code") as served:
        yield served
        served.end(15)


@pytest.fixture
async def api(claude: Served) -> AsyncIterator[Api]:
    async with grpc.aio.insecure_channel(claude.address) as channel:
        yield Api(channel)
