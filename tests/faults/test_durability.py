"""The settings of the database on which "durable before visible" rests."""

from pathlib import Path

from karta_server.storage.sql.store import SqlStore

FULL = 2


async def test_the_writer_syncs_each_commit(tmp_path: Path) -> None:
    """The fault: a power cut. What is proved: a commit is synced before anybody hears of it, since the writer's
    own connection is in WAL mode with synchronous=FULL. (NORMAL would sync at checkpoints alone.)"""
    store = SqlStore(tmp_path / "karta.db")
    await store.open()
    try:

        def ask(pragma: str) -> object:
            return lambda tx: tx.sessions._connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()

        assert await store.write(ask("synchronous")) == FULL
        assert await store.write(ask("journal_mode")) == "wal"
    finally:
        await store.close()
