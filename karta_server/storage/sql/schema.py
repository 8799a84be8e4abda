"""The version of the database's schema: which there are, which one a file has, and how it gets to the newest.

A new file is made from tables.py at once, without loading Alembic; a test
proves that the migrations lead to the same.
"""

import logging
from pathlib import Path
from typing import Final

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.sql import dialect, tables

REVISIONS: Final = ("0001",)
"""All that this code knows, oldest first; those of migrations/versions."""

HEAD: Final = REVISIONS[-1]

# As Alembic makes it.
_versions = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def current_and_head(path: Path) -> tuple[str, str]:
    """Return the database's revision ("" when there is none yet) and the newest. Changes nothing."""
    if not path.exists():
        return "", HEAD
    engine = dialect.looking_engine(path)
    try:
        with engine.connect() as connection:
            return _current(connection), HEAD
    except dialect.DatabaseFailure as error:
        raise dialect.unavailable(error) from error
    finally:
        engine.dispose()


def upgrade(path: Path) -> None:
    """Bring the database to the newest revision, making it if need be. Raises KartaError SCHEMA_TOO_NEW."""
    engine = dialect.writer_engine(path)
    try:
        with engine.connect() as connection:
            prepare(connection)
    except dialect.DatabaseFailure as error:
        raise dialect.unavailable(error) from error
    finally:
        engine.dispose()


def prepare(connection: Connection) -> None:
    """`upgrade` on a connection of the writer, in one transaction."""
    with connection.begin():
        current = _current(connection)
        if current == "":
            tables.metadata.create_all(connection, checkfirst=False)
            _versions.create(connection, checkfirst=False)
            connection.execute(insert(_versions).values(version_num=HEAD))
        elif current not in REVISIONS:
            raise KartaError(
                v1.ERROR_REASON_SCHEMA_TOO_NEW,
                f"The database has schema {current}, and this version of Karta knows {HEAD} at the newest. "
                "Start the newer version of Karta that wrote it, or use another state directory.",
                found=current,
                known=HEAD,
            )
        elif current != HEAD:
            migrate(connection)


def migrate(connection: Connection) -> None:
    """Run the migrations that are missing, in the connection's transaction."""
    from alembic import command  # Takes longer to load than all the rest to start.
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _current(connection: Connection) -> str:
    present = inspect(connection).get_table_names()
    if _versions.name in present:
        return connection.execute(select(_versions.c.version_num)).scalar() or ""
    if present:
        raise KartaError(
            v1.ERROR_REASON_STORE_UNAVAILABLE,
            "The database file is not one of Karta's: it has other tables. Use another state directory.",
        )
    return ""
