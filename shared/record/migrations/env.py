"""What Alembic runs for each command: on the connection it is given, or, to write SQL down, on none."""

from alembic import context
from sqlalchemy import Connection

from anabranch.shared.record.tables import METADATA

_connection: Connection | None = context.config.attributes.get("connection")

context.configure(
    connection=_connection,
    url=context.config.get_main_option("sqlalchemy.url") if _connection is None else None,
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite alters a table by making it anew
    transaction_per_migration=False,  # all of a command or nothing
    literal_binds=_connection is None,
)
with context.begin_transaction():
    context.run_migrations()
