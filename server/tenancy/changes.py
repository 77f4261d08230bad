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

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.tenancy.database import CONNECT_SECONDS, Database
from server.tenancy.errors import DatabaseUnavailableError
from server.tenancy.records import check_text, now
from server.tenancy.tables import audit

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

_CHANNEL = "remix_changes"


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
        await connection.exec_driver_sql(f"NOTIFY {_CHANNEL}")


async def changes(database: Database, poll_seconds: float) -> AsyncGenerator[None, None]:
    """Yields once at the start, then once after any number of changes, for ever.

    What is read after a yield is never older than the change that caused it. While the database
    is not available the feed waits; it does not fail.
    """
    bell: Bell = PollingBell() if database.is_sqlite else NotifyBell(database)
    seen: int | None = None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(bell.close)
        while True:
            try:
                await bell.arm()  # before the look: a change after it rings
                newest = await _newest(database)
            except DatabaseUnavailableError as error:
                log.warning("the change feed waits: %s", error)
                await asyncio.sleep(poll_seconds)
                continue
            if newest != seen:
                seen = newest
                yield
            await bell.wait(poll_seconds)


async def _newest(database: Database) -> int:
    async with database.read() as connection:
        return await connection.scalar(select(func.max(audit.c.id))) or 0


class PollingBell:
    """Rings when the time is over."""

    async def arm(self) -> None:
        pass

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        pass


class NotifyBell:
    """Rings when PostgreSQL notifies, at the latest when the time is over."""

    def __init__(self, database: Database) -> None:
        url = database.url.set(drivername="postgresql")
        self._conninfo = url.render_as_string(hide_password=False)
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def arm(self) -> None:
        """Listens on a connection of its own; a broken one is replaced."""
        import psycopg

        if self._connection is not None:
            return
        try:
            self._connection = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, connect_timeout=CONNECT_SECONDS
            )
            await self._connection.execute(f"LISTEN {_CHANNEL}")
        except psycopg.Error as error:
            await self.close()
            raise DatabaseUnavailableError(f"cannot listen for changes: {error}") from error

    async def wait(self, seconds: float) -> None:
        import psycopg

        assert self._connection is not None
        try:
            async for _ in self._connection.notifies(timeout=seconds, stop_after=1):
                pass
        except psycopg.Error as error:
            log.warning("the connection that listens for changes broke: %s", error)
            await self.close()

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()


Bell = PollingBell | NotifyBell
