"""Migrates a database to the tables of this release, when a process starts."""

from __future__ import annotations

import alembic.util
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from remix_runtime.errors import ConfigError
from server.tenancy.database import Database


async def migrate(database: Database) -> None:
    """Runs all missing migrations in one write transaction: replicas that start together wait for
    each other, and a killed one leaves nothing behind."""
    async with database.write(migrates=True) as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", "server.tenancy:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except alembic.util.CommandError as error:
        raise ConfigError(
            f"the database was made by a newer release of remix-serve: {error}"
        ) from error
    except ProgrammingError as error:
        raise ConfigError(f"the database cannot be migrated: {error.orig}") from error
