"""How large the load is: PYTEST_LOAD=full, or a fifth of it.

The name's beginning is that of variables which tests may see.
"""

import os

import pytest

FULL = os.environ.get("PYTEST_LOAD") == "full"


@pytest.fixture
def watchers() -> int:
    """How many watch one turn, and how many watch sessions where nothing happens."""
    return 1000 if FULL else 200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "watchers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(300 if FULL else 90))
