"""The stores that the suite runs on."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from store_case import Clock

from karta_server.storage.contract import Store
from karta_server.storage.sql.store import SqlStore

MAKERS: dict[str, Callable[[Path, Clock], Store]] = {
    "sqlite": lambda folder, clock: SqlStore(folder / "karta.db", clock=clock),
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=sorted(MAKERS))
def make_store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Callable[[], Store]:
    """Make a store on this test's data; a second one finds what the first one left."""
    return lambda: MAKERS[request.param](tmp_path, clock)


@pytest.fixture
async def store(make_store: Callable[[], Store]) -> AsyncIterator[Store]:
    """A new, open store."""
    store = make_store()
    await store.open()
    yield store
    await store.close()
