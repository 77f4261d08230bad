"""The database under the directory: SQLite by default, PostgreSQL by URL.

Writes are rare and come one at a time, whatever process they come from: SQLite's BEGIN IMMEDIATE,
an advisory lock on PostgreSQL. So a write transaction may read and then decide, no two of them can
deadlock, and audit rows are numbered in the order in which their changes took effect.

Every transaction has a time by which it has failed, whatever the database does: refuse, hang, hold
locks or be silent.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiosqlite
import sqlalchemy.exc
from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from remix_runtime.errors import ConfigError
from remix_runtime.extras import missing_extra
from remix_runtime.private import private_file
from server.tenancy.errors import DatabaseUnavailableError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5
READ_SECONDS = 5
"""Seconds after which a read has failed."""
WRITE_SECONDS = 5
"""Seconds that a write waits for those before it."""
ANSWER_SECONDS = 5
"""Seconds that all the rest of a write may take."""
MIGRATE_SECONDS = 60
"""Seconds for both parts of a migration."""
IDLE_SECONDS = 15
"""Seconds after which PostgreSQL ends a write whose process is silent, so that it blocks no other.
"""

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_LOCK = 0x72656D6978  # "remix"


class Database:
    """Connections and transactions. Raises `ConfigError` for a URL that cannot be used."""

    def __init__(self, url: str | URL) -> None:
        self.url = _parse(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._threads: list[threading.Thread] = []
        if self.is_sqlite:
            self.engine = _sqlite_engine(self.url, self._connect_sqlite)
        else:
            self.engine = _postgres_engine(self.url)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Opens a transaction that only reads, as of one moment."""
        engine = self.engine.execution_options(writes=False, wait_ms=_ms(READ_SECONDS / 2))
        async with self._available(READ_SECONDS), engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def write(self, *, migrates: bool = False) -> AsyncIterator[AsyncConnection]:
        """Opens the only writing transaction; committed at the end, undone by an exception."""
        wait, answer = (MIGRATE_SECONDS,) * 2 if migrates else (WRITE_SECONDS, ANSWER_SECONDS)
        engine = self.engine.execution_options(writes=True, wait_ms=_ms(wait))
        async with self._available(wait + answer), engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def share(self, seconds: float) -> AsyncIterator[AsyncConnection]:
        """Opens a transaction that writes beside others, and locks the rows that it needs. For
        PostgreSQL."""
        engine = self.engine.execution_options(writes=True, beside=True, wait_ms=_ms(seconds))
        async with self._available(seconds), engine.begin() as connection:
            yield connection

    async def close(self) -> None:
        """Closes all connections, those too that a cancelled caller left behind."""
        await self.engine.dispose()
        for thread in self._threads:
            if thread.is_alive():
                # It answers to the event loop, which may be closed after this.
                await asyncio.to_thread(thread.join, READ_SECONDS)

    def _connect_sqlite(self, *args: Any, **settings: Any) -> aiosqlite.Connection:
        # Its thread is noted before it runs: one that still connects may be left behind, too.
        connection = aiosqlite.connect(*args, **settings)
        connection._thread.daemon = True
        self._threads = [t for t in self._threads if t.ident is None or t.is_alive()]
        self._threads.append(connection._thread)
        return connection

    @asynccontextmanager
    async def _available(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except _OUR_MISTAKES:
            raise
        except (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.TimeoutError) as error:
            raise self._unavailable(getattr(error, "orig", None) or error) from error
        except TimeoutError as error:
            raise self._unavailable(f"no answer in {seconds:g} seconds") from error

    def _unavailable(self, cause: object) -> DatabaseUnavailableError:
        # Passwords may be in the query too, under many names.
        place = self.url.set(query={}).render_as_string(hide_password=True)
        return DatabaseUnavailableError(f"the database {place} is not available: {cause}")


def sqlite_file(path: Path) -> URL:
    """The URL of a database file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path.absolute()))


# What a driver says of a wrong statement; all else it says is of the database's state.
_OUR_MISTAKES = (
    sqlalchemy.exc.DataError,
    sqlalchemy.exc.IntegrityError,
    sqlalchemy.exc.NotSupportedError,
    sqlalchemy.exc.ProgrammingError,
)


def _parse(text: str | URL) -> URL:
    expected = "expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
    try:
        url = make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ConfigError(f"the database URL cannot be read; {expected}") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise ConfigError(f"database URL: found {url.drivername!r}; {expected}")
    if driver.startswith("sqlite") and url.database in (None, "", ":memory:"):
        raise ConfigError(f"database URL: SQLite needs a file to remember anything in; {expected}")
    if driver.startswith("sqlite") and (url.host or url.username or url.password):
        raise ConfigError(f"database URL: found a host or user for SQLite; {expected}")
    return url.set(drivername=driver)


class _SqliteConnection(sqlite3.Connection):
    """Ends its transaction at once when it is closed. Otherwise SQLite waits for the end of all
    statements, and one whose caller left lives, with the lock, until Python's garbage collector
    finds it."""

    def close(self) -> None:
        self.rollback()
        super().close()


def _sqlite_engine(url: URL, connect: Callable[..., aiosqlite.Connection]) -> AsyncEngine:
    # The driver's own BEGINs are off: they come too late to lock what a transaction reads.
    settings = {"isolation_level": None, "timeout": READ_SECONDS / 2, "factory": _SqliteConnection}
    engine = create_async_engine(url, connect_args=settings | {"async_creator_fn": connect})
    file = Path(str(url.database))
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder of the database {file} cannot be made: {error}") from error

    @event.listens_for(engine.sync_engine, "do_connect")
    def keep_private(*_: object) -> None:
        _keep_private(file)

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                # Once for a file. SQLite does not wait here for others that do the same.
                cursor.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        for pragma in ("synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {options['wait_ms']}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options["writes"] else "BEGIN")

    return engine


def _keep_private(file: Path) -> None:
    """Makes the database's file, which SQLite would let others read, and closes what is there to
    them. SQLite gives its other files the mode of this one."""
    for path in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm", "-journal"))):
        with suppress(OSError):  # SQLite says what is wrong with a file
            if (path == file or path.exists()) and not private_file(path):
                log.warning("%s: others may read this file, which belongs to another user", path)


def _postgres_engine(url: URL) -> AsyncEngine:
    try:
        from server.tenancy.postgres import LeavableConnection

        connect = {
            "async_creator_fn": LeavableConnection.connect,
            "connect_timeout": CONNECT_SECONDS,
        }
        engine = create_async_engine(url, pool_pre_ping=True, connect_args=connect)
    except ImportError:
        raise missing_extra("database URL", "postgres", "psycopg") from None

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        settings = f"SET LOCAL lock_timeout = {options['wait_ms']};"
        if options["writes"]:
            settings += f"SET LOCAL idle_in_transaction_session_timeout = {_ms(IDLE_SECONDS)};"
            if not options.get("beside"):
                settings += f"SELECT pg_advisory_xact_lock({_LOCK})"
        else:
            settings += "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
        connection.exec_driver_sql(settings)

    return engine


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
