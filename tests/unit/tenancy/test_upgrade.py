"""A database of an older release: its tables become those of this one, and its rows stay."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, insert

from server.tenancy import Directory, tables
from server.tenancy.database import Database
from server.tenancy.keys import hash_of, new_secret, prefix_of
from server.tenancy.records import Quota
from tests.forkserver import context
from tests.unit.tenancy import processes
from tests.unit.tenancy.samples import digest

MADE = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = new_secret()


def first_release(connection: Connection) -> None:
    """What the first release has left."""
    config = Config()
    config.set_main_option("script_location", "server.tenancy:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "0001")
    rows = {
        tables.tenants: {"id": "acme", "created": MADE},
        tables.api_keys: {
            **{"id": "k", "tenant": "acme", "prefix": prefix_of(SECRET)},
            **{"hash": hash_of(SECRET), "created": MADE},
        },
        tables.quotas: {"tenant": "acme", "requests_per_minute": 7, "may_use_base": True},
        tables.adapters: {
            **{"digest": digest("a"), "created": MADE, "source": "hf://acme/a"},
            **{"num_bytes": 5, "description": {"n": 8}},
        },
        tables.set_revisions: {
            **{"tenant": "acme", "revision": 3, "adapters": {"style": digest("a")}},
            **{"created": MADE, "actor": "admin"},
        },
        tables.audit: {
            **{"at": MADE, "actor": "admin", "action": "set.put", "tenant": "acme", "detail": {}},
        },
    }
    for table, row in rows.items():
        connection.execute(insert(table).values(row))


async def make_old(url: str) -> None:
    database = Database(url)
    async with database.write(migrates=True) as connection:
        await connection.run_sync(first_release)
    await database.close()


async def test_a_server_keeps_all_that_the_first_release_wrote(url: str) -> None:
    await make_old(url)
    directory = await Directory.open(url)
    try:
        assert await directory.authenticate(SECRET) == "acme"
        assert await directory.quota("acme") == Quota(requests_per_minute=7, may_use_base=True)
        assert (await directory.adapter(digest("a"))).source == "hf://acme/a"
        current = await directory.current_set("acme")
        assert (current.revision, current.adapters) == (3, {"style": digest("a")})
        assert [row.action for row in await directory.audit(limit=9)] == ["set.put"]
        # And goes on from there.
        put = await directory.put_set("acme", {}, expected=3, actor="test")
        assert put.revision == 4
        await directory.delete_tenant("acme", actor="test")
    finally:
        await directory.close()


def test_servers_that_start_at_once_on_an_old_database_do_not_race(url: str) -> None:
    asyncio.run(make_old(url))
    start = context.Barrier(3, timeout=60)
    starting = [context.Process(target=processes.race_open, args=([url], start)) for _ in range(3)]
    for server in starting:
        server.start()
    for server in starting:
        server.join(60)
    assert [server.exitcode for server in starting] == [0, 0, 0]
