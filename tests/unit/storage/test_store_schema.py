"""The schema of the SQL store: making it, migrating it, refusing what is too new."""

import logging
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.sql import dialect, schema
from karta_server.storage.sql.store import SqlStore


def described(path: Path) -> set[tuple[str, str, str]]:
    """Every table and index as SQL, in a spelling that does not depend on who wrote it."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {(kind, name, "".join(re.sub(r"CONSTRAINT \S+ ", "", sql).split()).lower()) for kind, name, sql in rows}


def migrated(path: Path) -> None:
    engine = dialect.writer_engine(path)
    with engine.connect() as connection, connection.begin():
        schema.migrate(connection)
    engine.dispose()


def set_revision(path: Path, revision: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.commit()
    connection.close()


def test_migrations_lead_to_what_a_new_database_has(tmp_path: Path):
    schema.upgrade(tmp_path / "new.db")
    migrated(tmp_path / "migrated.db")
    assert described(tmp_path / "new.db") == described(tmp_path / "migrated.db")
    assert len(described(tmp_path / "new.db")) > 10
    assert schema.current_and_head(tmp_path / "migrated.db") == (schema.HEAD, schema.HEAD)


def test_known_revisions_are_those_of_the_migrations():
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == schema.REVISIONS


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path):
    path = tmp_path / "karta.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE requests (in_the_way)")
    connection.close()
    with pytest.raises(dialect.DatabaseFailure):
        migrated(path)
    assert {name for _, name, _ in described(path)} == {"requests"}


def test_an_older_database_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "karta.db"
    ran = []
    schema.upgrade(path)
    monkeypatch.setattr(schema, "REVISIONS", ("0001", "0002"))
    monkeypatch.setattr(schema, "HEAD", "0002")
    monkeypatch.setattr(schema, "migrate", ran.append)
    assert schema.current_and_head(path) == ("0001", "0002")
    schema.upgrade(path)
    assert len(ran) == 1


def test_there_is_none_before_it_is_made(tmp_path: Path):
    path = tmp_path / "karta.db"
    assert schema.current_and_head(path) == ("", schema.HEAD)
    assert not path.exists()
    schema.upgrade(path)
    before = path.read_bytes()
    assert schema.current_and_head(path) == (schema.HEAD, schema.HEAD)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    schema.upgrade(path)
    assert schema.current_and_head(path) == (schema.HEAD, schema.HEAD)


async def test_looking_at_it_beside_an_open_store(tmp_path: Path):
    store = SqlStore(tmp_path / "karta.db")
    await store.open()
    assert schema.current_and_head(tmp_path / "karta.db") == (schema.HEAD, schema.HEAD)
    await store.close()


async def test_a_newer_schema_is_refused(tmp_path: Path):
    path = tmp_path / "karta.db"
    schema.upgrade(path)
    set_revision(path, "9999")
    store = SqlStore(path)
    for call in (store.open, lambda: schema.upgrade(path)):
        with pytest.raises(KartaError) as caught:
            await call()
        assert caught.value.reason == v1.ERROR_REASON_SCHEMA_TOO_NEW
        assert caught.value.metadata == {"found": "9999", "known": schema.HEAD}
        assert "newer version" in caught.value.message
    assert schema.current_and_head(path) == ("9999", schema.HEAD)
    await store.close()


@pytest.mark.parametrize("content", [b"this is not a database, but a text of some length. " * 100, "other"])
async def test_a_file_that_is_not_karta_s_is_refused_and_left(tmp_path: Path, content: bytes | str):
    path = tmp_path / "karta.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE other (a)")
        connection.close()
    for call in (SqlStore(path).open, lambda: schema.upgrade(path), lambda: schema.current_and_head(path)):
        with pytest.raises(KartaError) as caught:
            await call()
        assert caught.value.reason == v1.ERROR_REASON_STORE_UNAVAILABLE
    if isinstance(content, bytes):
        assert path.read_bytes() == content
    else:
        assert {name for _, name, _ in described(path)} == {"other"}


async def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path):
    store = SqlStore(tmp_path / "nowhere" / "karta.db")
    with pytest.raises(KartaError) as caught:
        await store.open()
    assert caught.value.reason == v1.ERROR_REASON_STORE_UNAVAILABLE
    await store.close()


def test_a_new_database_needs_no_alembic(tmp_path: Path, environment: dict[str, str]):
    code = (
        "import asyncio, sys; from pathlib import Path; from karta_server.storage.sql.store import SqlStore\n"
        "async def main():\n"
        "    store = SqlStore(Path(sys.argv[1])); await store.open(); await store.close()\n"
        "asyncio.run(main()); print('alembic' in sys.modules)"
    )
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "karta.db")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_migrating_is_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]):
    with caplog.at_level(logging.INFO):
        migrated(tmp_path / "karta.db")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
