from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import psycopg
import pytest

from server.tenancy import Directory
from server.tenancy.errors import DatabaseUnavailableError
from server.tenancy.postgres import LeavableConnection
from tests.forkserver import context
from tests.postgres import PostgresServer, postgres_server
from tests.unit.tenancy import processes

NEVER = 3600.0
"""So long that only a notification can be what woke the feed."""


def poll_seconds(directory: Directory) -> float:
    return 0.1 if directory._database.is_sqlite else NEVER


async def newer(feed: AsyncGenerator[int, None], than: int) -> int:
    """The next change that the feed tells of."""
    async for change in feed:
        if change > than:
            return change
    raise AssertionError("the feed ended")


async def test_a_change_in_another_process_wakes_the_feed(url: str, directory: Directory) -> None:
    async with aclosing(directory.changes(poll_seconds(directory))) as feed:
        change = await anext(feed)
        for number in range(3):
            waiting = asyncio.ensure_future(newer(feed, change))
            process = context.Process(target=processes.announce_tenant, args=(url, f"t{number}"))
            process.start()
            while len(await directory.tenants()) == number:
                assert process.exitcode in (None, 0)
            change = await asyncio.wait_for(waiting, 120)
            assert change == (await directory.snapshot()).change
            process.join()


async def test_a_change_between_two_looks_is_not_lost(url: str, directory: Directory) -> None:
    other = await Directory.open(url)
    async with aclosing(directory.changes(poll_seconds(directory))) as feed:
        before = await anext(feed)
        await other.create_tenant("a", actor="test")
        await other.create_tenant("b", actor="test")
        change = await asyncio.wait_for(newer(feed, before), 120)
        assert change == (await directory.snapshot()).change
        await other.create_tenant("c", actor="test")
        later = await asyncio.wait_for(newer(feed, change), 120)
        assert later == (await directory.snapshot()).change
    await other.close()


async def test_the_feed_tells_that_the_database_answers_while_nothing_changes(
    url: str, directory: Directory
) -> None:
    await directory.create_tenant("a", actor="test")
    other = await Directory.open(url)
    newest = (await directory.snapshot()).change
    async with aclosing(directory.changes(0.01)) as feed:
        assert [await anext(feed) for _ in range(3)] == [newest] * 3
        await other.current_sets()
        await other.put_set("a", {}, expected=0, actor="test")  # changes nothing
        assert [await anext(feed) for _ in range(3)] == [newest] * 3
    await other.close()


async def test_between_looks_the_feed_waits_for_the_time_that_it_was_given(
    directory: Directory,
) -> None:
    async with aclosing(directory.changes(NEVER)) as feed:
        assert await anext(feed) == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(feed), 0.3)


@pytest.mark.parametrize(
    "error", [psycopg.OperationalError("too many clients already"), OSError("no file left")]
)
async def test_polling_goes_on_while_no_connection_can_listen(
    error: Exception,
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where the database has only so many connections. It is told once, not at each look."""

    async def refuse(*_: object, **__: object) -> None:
        raise error

    url = postgres.fresh_database()
    directory = await Directory.open(url)
    await directory.create_tenant("a", actor="test")
    async with aclosing(directory.changes(0.01)) as feed:
        monkeypatch.setattr(LeavableConnection, "connect", refuse)
        assert [await anext(feed) for _ in range(3)] == [1, 1, 1]
    assert len([line for line in caplog.messages if "cannot listen" in line]) == 1
    await directory.close()


async def test_polling_is_enough_where_notifications_do_not_come(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler that hands every transaction to another connection."""
    url = postgres.fresh_database()
    directory, other = await Directory.open(url), await Directory.open(url)
    monkeypatch.setattr("server.tenancy.changes.CHANGES", "other_channel")
    async with aclosing(directory.changes(0.1)) as feed:
        before = await anext(feed)
        monkeypatch.undo()
        await other.create_tenant("a", actor="test")
        await asyncio.wait_for(newer(feed, before), 120)
    await directory.close()
    await other.close()


async def test_a_broken_listening_connection_is_replaced(postgres: PostgresServer) -> None:
    url = postgres.fresh_database()
    directory = await Directory.open(url)
    async with aclosing(directory.changes(NEVER)) as feed:
        before = await anext(feed)
        waiting = asyncio.ensure_future(newer(feed, before))
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as admin:
            listening = "pid <> pg_backend_pid() AND query LIKE 'LISTEN%'"
            ended = await admin.execute(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listening}"
                " AND datname = current_database()"
            )
            assert len(await ended.fetchall()) == 1
        await directory.create_tenant("a", actor="test")
        await asyncio.wait_for(waiting, 120)
    await directory.close()


async def test_the_directory_survives_a_restart_of_the_database_and_the_feed_ends(
    tmp_path: Path,
) -> None:
    with postgres_server() as server:
        directory = await Directory.open(server.fresh_database())
        await directory.create_tenant("a", actor="test")
        async with aclosing(directory.changes(0.05)) as feed:
            before = await anext(feed)
            waiting = asyncio.ensure_future(newer(feed, before))
            server.stop()
            for call in (
                directory.tenants(),
                directory.create_tenant("b", actor="test"),
                directory.authenticate(f"rk-{'0' * 8}-{'a' * 43}"),
            ):
                with pytest.raises(DatabaseUnavailableError, match="postgresql") as refused:
                    await call
                assert refused.value.retry_after > 0
            with pytest.raises(DatabaseUnavailableError):
                await Directory.open(server.url("test_0"))
            with pytest.raises(DatabaseUnavailableError):
                await asyncio.wait_for(waiting, 120)
            server.start()
            assert [item.id for item in await directory.tenants()] == ["a"]
            await directory.create_tenant("c", actor="test")
        async with aclosing(directory.changes(0.05)) as feed:
            assert await asyncio.wait_for(anext(feed), 120) > before
        await directory.close()
