"""A server to run the programs against. `make test-polyglot` builds them before it runs the tests."""

from collections.abc import Iterator
from pathlib import Path

import polyglot_builds  # noqa: F401  # now: it reads what the tests may not see
import pytest
from serving import dev_serve


@pytest.fixture
def address(project: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a server with the scripted harness."""
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        yield served.address
