from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from claude_harness import Claude

from karta_server.testing.offline_model import OfflineModel


@pytest.fixture
async def claude(tmp_path: Path) -> AsyncIterator[Claude]:
    """The real Claude Code; fails the test when a process of it is left."""
    async with OfflineModel() as model:
        claude = Claude(tmp_path, model)
        yield claude
        await claude.close()
        left = claude.processes()
    assert left == {}
