from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from remix_runtime.errors import ConfigError
from server.tenancy import Directory, database
from server.tenancy.database import Database, sqlite_file
from server.tenancy.errors import DatabaseUnavailableError
from server.tenancy.records import Quota
from server.tenancy.tables import metadata
from tests.postgres import PostgresServer
from tests.unit.tenancy.moments import Moment

INSERT = "INSERT INTO tenants (id, created) VALUES ('a', '2026-01-01 00:00:00')"


async def test_migrations_make_the_tables_that_the_code_uses(directory: Directory) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(
            compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        )

    async with directory._database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_opening_again_changes_nothing(url: str, directory: Directory) -> None:
    await directory.create_tenant("a", actor="test")
    again = await Directory.open(url)
    assert await again.tenants() == await directory.tenants()
    await again.close()


async def test_a_database_of_a_newer_release_is_refused(url: str, directory: Directory) -> None:
    async with directory._database.write() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="newer release"):
        await Directory.open(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("directory.db", "cannot be read"),
        ("mysql://host/name", "'mysql'"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("postgresql://user:secret@host:port/name", "cannot be read"),
        ("sqlite://user:secret@host/directory.db", "a host or user for SQLite"),
    ],
)
def test_urls_that_are_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        Database(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:////tmp/x.db", "sqlite+aiosqlite"),
        ("postgres://host/name", "postgresql+psycopg"),
        ("postgresql://host/name", "postgresql+psycopg"),
    ],
)
def test_the_urls_that_users_write_get_the_async_drivers(url: str, driver: str) -> None:
    assert Database(url).url.drivername == driver


def test_postgresql_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "psycopg":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"remix-serve\[postgres\]"):
        Database("postgresql://host/name")


async def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseUnavailableError, match=r"user:\*\*\*@") as refused:
        await Directory.open("postgresql://user:secret@127.0.0.1:1/name")
    assert "secret" not in str(refused.value)


async def test_an_unreachable_server_is_named_without_what_its_query_has() -> None:
    query = "password=secret&sslpassword=secret&host=127.0.0.1"
    with pytest.raises(DatabaseUnavailableError, match=r"postgresql.*name") as refused:
        await Directory.open(f"postgresql://user@127.0.0.1:1/name?{query}")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("before", ["nothing", "a database that all may read"])
async def test_only_its_user_may_read_a_database_file(tmp_path: Path, before: str) -> None:
    path = tmp_path / "folder" / "directory.db"
    if before != "nothing":
        path.parent.mkdir()
        old = sqlite3.connect(path)
        old.execute("PRAGMA journal_mode = WAL")
        old.execute("CREATE TABLE x (y)")
        old.commit()
        for name in ("directory.db", "directory.db-wal", "directory.db-shm"):
            (path.parent / name).chmod(0o644)
    directory = await Directory.open(f"sqlite:///{path}")
    await directory.create_tenant("a", actor="test")
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("directory.db", "directory.db-wal", "directory.db-shm"), 0o600)
    if before == "nothing":
        assert path.parent.stat().st_mode & 0o777 == 0o700
    else:
        old.close()
    await directory.close()


async def test_sqlite_makes_its_folder_and_is_set_up_to_be_durable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "directory.db"
    directory = await Directory.open(f"sqlite:///{path}")
    async with directory._database.read() as connection:
        found = {
            pragma: (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar()
            for pragma in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    await directory.close()
    assert path.exists()


async def test_a_folder_that_cannot_be_made_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="folder of the database"):
        await Directory.open(f"sqlite:///{tmp_path}/file/directory.db")


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "directory.db"
    path.write_bytes(b"something else, and longer than a page header " * 100)
    with pytest.raises(DatabaseUnavailableError, match="not a database"):
        await Directory.open(f"sqlite:///{path}")


async def test_an_account_that_may_not_make_tables_is_a_setting_that_is_wrong(
    postgres: PostgresServer,
) -> None:
    url = postgres.fresh_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(ConfigError, match="permission denied"):
        await Directory.open(url.replace("postgres@", "guest@"))
    postgres.drop(url)


async def test_a_failed_write_leaves_nothing(directory: Directory) -> None:
    async def write() -> None:
        async with directory._database.write() as connection:
            await connection.exec_driver_sql(INSERT)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        await write()
    assert await directory.tenants() == []


async def test_a_cancelled_write_leaves_nothing_and_holds_no_lock(directory: Directory) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with directory._database.write() as connection:
            await connection.exec_driver_sql(INSERT)
            inside.set()
            await asyncio.Event().wait()

    writing = asyncio.ensure_future(write())
    await inside.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await directory.create_tenant("b", actor="test")
    assert [tenant.id for tenant in await directory.tenants()] == ["b"]


async def test_a_connection_that_is_left_while_it_is_made_has_no_thread_after_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    class Slow(sqlite3.Connection):
        def __init__(self, *args: Any, **settings: Any) -> None:
            begun.set()
            connecting.append(threading.current_thread())
            may_end.wait(30)
            super().__init__(*args, **settings)

    async def read() -> None:
        async with there.read():
            pass

    connecting: list[threading.Thread] = []
    monkeypatch.setattr(database, "_SqliteConnection", Slow)
    there = Database(sqlite_file(tmp_path / "directory.db"))
    reading = asyncio.ensure_future(read())
    assert await asyncio.to_thread(begun.wait, 30)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    closing = asyncio.ensure_future(there.close())
    await asyncio.sleep(0.05)  # time in which it would end if it did not wait
    may_end.set()
    await closing
    assert not connecting[0].is_alive()


async def test_a_write_left_at_any_moment_holds_no_lock_even_while_its_traceback_lives(
    directory: Directory,
) -> None:
    """A traceback keeps the cursor of the statement in which the write was left, and that its
    rows: the tenant's is read first."""
    await directory.create_tenant("a", actor="test")
    kept = []

    async def change(limit: int) -> None:
        try:
            await directory.set_quota("a", Quota(max_concurrent=limit), actor="test")
        except asyncio.CancelledError as error:
            kept.append(error)

    for step in range(1, 15):
        changing = asyncio.ensure_future(change(step))
        with Moment(directory, step, changing.cancel) as moment:
            await changing
        assert moment.came
        # Raises where a lock is left: it waits for a stated time.
        await directory.set_quota("a", Quota(max_concurrent=step + 100), actor="test")
    assert len(kept) == 14


async def test_while_a_write_hangs_reads_go_on_and_writes_are_refused_in_time(
    url: str, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Database(url)
    async with other.write() as connection:
        monkeypatch.setattr(database, "WRITE_SECONDS", 0.2)
        await connection.exec_driver_sql("UPDATE tenants SET deleted = NULL")
        assert await directory.tenants() == []
        with pytest.raises(DatabaseUnavailableError, match="lock"):
            async with directory._database.write():
                pytest.fail("two writes at once")
        monkeypatch.undo()
    await directory.create_tenant("a", actor="test")
    await other.close()


async def test_postgresql_ends_a_write_whose_process_is_silent(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.fresh_database()
    directory = await Directory.open(url)
    monkeypatch.setattr(database, "IDLE_SECONDS", 0.2)
    hung = Database(url)

    async def write() -> None:
        async with hung.write() as connection:
            # Waits for the lock until the server has ended the silent one.
            await directory.create_tenant("a", actor="test")
            await connection.exec_driver_sql("SELECT 1")

    with pytest.raises(DatabaseUnavailableError):
        await write()
    assert len(await directory.tenants()) == 1
    await hung.close()
    await directory.close()
    postgres.drop(url)


async def test_many_calls_at_once_on_one_directory(directory: Directory) -> None:
    names = [f"t{number:02}" for number in range(30)]
    await asyncio.gather(*(directory.create_tenant(name, actor="test") for name in names))
    found = await asyncio.gather(*(directory.current_set(name) for name in names))
    assert [item.tenant for item in found] == names
    rows = await directory.audit(limit=99)
    assert len({row.id for row in rows}) == 30


def test_a_file_is_the_one_that_was_named(tmp_path: Path) -> None:
    """A URL would take these characters for its own."""
    path = tmp_path / "a?b=1%20c#d" / "remix.db"

    async def make() -> None:
        await (await Directory.open(sqlite_file(path))).close()

    asyncio.run(make())
    assert [file.name for file in tmp_path.iterdir()] == ["a?b=1%20c#d"]
    assert path.stat().st_size > 0
