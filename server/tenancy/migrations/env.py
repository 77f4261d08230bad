"""What Alembic runs: migrations on the connection, and in the transaction, of `migrate`."""

from alembic import context

from server.tenancy.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
