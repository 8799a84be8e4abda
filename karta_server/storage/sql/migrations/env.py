"""Alembic runs this; karta_server.storage.sql.schema hands it a connection with an open transaction."""

from alembic import context

from karta_server.storage.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite changes a table by making it anew.
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
