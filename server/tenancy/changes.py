"""The change feed: one process learns that another one changed something.

Every change writes an audit row, so the newest row's id tells whether anything changed. PostgreSQL
says when to look (LISTEN/NOTIFY); looking every few seconds is enough for SQLite, and for
PostgreSQL while notifications cannot come through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.tenancy.database import READ_SECONDS, Database
from server.tenancy.records import check_text, now
from server.tenancy.snapshot import newest_change
from server.tenancy.tables import audit

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

CHANGES = "remix_changes"
"""The channel of the notifications."""


async def record(
    connection: AsyncConnection,
    actor: str,
    action: str,
    tenant: str | None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Writes the audit row of a change into its transaction; listeners wake when it commits."""
    check_text("actor", actor)
    row = {"at": now(), "actor": actor, "action": action, "tenant": tenant, "detail": detail or {}}
    await connection.execute(insert(audit).values(row))
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql(f"NOTIFY {CHANGES}")


async def changes(database: Database, poll_seconds: float) -> AsyncGenerator[int, None]:
    """Yields the newest change's id after every look at the database, until one fails.

    What is read after a yield is never older than that change. Raises `DatabaseUnavailableError`,
    within the time of a read; whoever follows asks for another feed then.
    """
    bell = Bell(database, CHANGES)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(bell.close)
        while True:
            await bell.arm()  # before the look: a change after it rings
            async with database.read() as connection:
                newest = await newest_change(connection)
            bell.tell()
            yield newest
            await bell.wait(poll_seconds)


class Bell:
    """Rings when PostgreSQL notifies, at the latest when the time is over; only then on SQLite, and
    while no connection that listens can be had."""

    def __init__(self, database: Database, channel: str) -> None:
        self._database = database
        self._channel = channel
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._trouble: Exception | None = None
        self._told = False

    async def arm(self) -> None:
        """Listens on a connection of its own; a broken one is replaced."""
        if self._database.is_sqlite or self._connection is not None:
            return
        import psycopg

        from server.tenancy.postgres import LeavableConnection

        url = self._database.url.set(drivername="postgresql")
        conninfo = url.render_as_string(hide_password=False)
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._connection = await LeavableConnection.connect(conninfo, autocommit=True)
                await self._connection.execute(f"LISTEN {self._channel}")
        except (psycopg.Error, OSError) as error:
            await self.close()
            self._trouble = error
        else:
            self._trouble, self._told = None, False

    def tell(self) -> None:
        """Logs once that it does not listen. Only for a database that answers: of another one the
        next look tells more."""
        if self._trouble is not None and not self._told:
            self._told = True
            log.warning("cannot listen for changes, polling for them: %s", self._trouble)

    async def wait(self, seconds: float) -> list[str]:
        """Returns what came with the notifications."""
        if self._connection is None:
            await asyncio.sleep(seconds)
            return []
        import psycopg

        told: list[str] = []
        try:
            async for notification in self._connection.notifies(timeout=seconds, stop_after=1):
                told.append(notification.payload)
        except (psycopg.Error, OSError) as error:
            log.warning("the connection that listens for changes broke: %s", error)
            await self.close()
        return told

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()
