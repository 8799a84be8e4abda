"""How many faults, and the seed of their moments.

PYTEST_KILLS says how often the server is killed (10 unless told otherwise), PYTEST_SEED repeats a run.
The name's beginning is that of variables which tests may see.
"""

import os
import random

import pytest

KILLS = int(os.environ.get("PYTEST_KILLS", "10"))
SECONDS_A_KILL = 20


@pytest.fixture
def kills() -> int:
    return KILLS


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("PYTEST_SEED") or random.SystemRandom().randrange(2**32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kills" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(60 + SECONDS_A_KILL * KILLS))
