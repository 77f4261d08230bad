"""A database that is silent, slow, locked or restarted: every call ends in a stated time, and
nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest

from server.tenancy import Directory, database
from server.tenancy.database import Database
from server.tenancy.errors import DatabaseUnavailableError
from tests.forkserver import context
from tests.postgres import PostgresServer, postgres_server
from tests.unit.tenancy import processes
from tests.unit.tenancy.moments import Moment
from tests.unit.tenancy.samples import check_history, digest, with_tenant

SLACK = 5.0
"""For the machine, beyond the stated time."""
KEY = f"rk-{'0' * 8}-{'a' * 43}"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that may be stopped."""
    with postgres_server() as running:
        yield running


@contextmanager
def short_times() -> Iterator[None]:
    """Only for calls that are to fail: on a busy machine others need longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "READ_SECONDS", 0.3)
        patch.setattr(database, "WRITE_SECONDS", 0.2)
        patch.setattr(database, "ANSWER_SECONDS", 0.1)
        yield


@contextmanager
def paused(server: PostgresServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


@asynccontextmanager
async def opened(server: PostgresServer) -> AsyncIterator[Directory]:
    directory = await Directory.open(server.fresh_database())
    yield directory
    await directory.close()


async def unavailable(*calls: Awaitable[object], within: float) -> None:
    """All at once."""
    started = time.monotonic()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ends] == [DatabaseUnavailableError] * len(calls), ends
    assert time.monotonic() - started < within + SLACK


def reads(directory: Directory) -> list[Awaitable[object]]:
    return [
        directory.tenants(),
        directory.snapshot(),
        directory.authenticate(KEY),
        directory.current_set("acme"),
        directory.audit(limit=1),
    ]


def writes(directory: Directory) -> list[Awaitable[object]]:
    return [
        directory.create_tenant("b", actor="test"),
        directory.create_key("acme", actor="test"),
        directory.put_set("acme", {"style": digest("a")}, expected=0, actor="test"),
        directory.delete_tenant("acme", actor="test"),
    ]


async def test_the_stated_times_hold_while_postgresql_is_silent(server: PostgresServer) -> None:
    """Unpatched; with connections that were open before, and with none."""
    assert (database.READ_SECONDS, database.WRITE_SECONDS + database.ANSWER_SECONDS) == (5, 10)
    async with opened(server) as warm, opened(server) as cold:
        await with_tenant(warm, "a")
        await cold.close()
        with paused(server):
            await asyncio.gather(
                unavailable(*reads(warm), *reads(cold), within=5),
                unavailable(*writes(warm), *writes(cold), within=10),
                unavailable(Directory.open(server.url("postgres")), within=5),
            )
        assert [row.action for row in await warm.audit(limit=9)] == ["adapter.add", "tenant.create"]
        assert await check_history(warm, "acme") == 0


async def test_more_calls_than_connections_end_in_time_too(server: PostgresServer) -> None:
    async with opened(server) as directory:
        with paused(server), short_times():
            await unavailable(*(directory.tenants() for _ in range(60)), within=0.3)
        assert await asyncio.gather(*(directory.tenants() for _ in range(60))) == [[]] * 60


async def test_a_caller_that_leaves_is_let_go_at_once(server: PostgresServer) -> None:
    async with opened(server) as directory:
        with paused(server):
            for call in (*reads(directory), *writes(directory)):
                started = time.monotonic()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(call, 0.05)
                assert time.monotonic() - started < 0.05 + SLACK
        assert await directory.tenants() == []


async def test_a_slow_database_is_waited_for(server: PostgresServer) -> None:
    async with opened(server) as directory:
        for number in range(3):
            server.pause()
            asyncio.get_running_loop().call_later(0.2, server.resume)
            await directory.create_tenant(f"t{number}", actor="test")
        assert len(await directory.audit(limit=9)) == 3


async def test_a_feed_ends_in_time_and_the_next_one_goes_on(server: PostgresServer) -> None:
    async with opened(server) as directory:
        await directory.create_tenant("a", actor="test")
        async with aclosing(directory.changes(0.05)) as feed:
            assert await anext(feed) == 1
            with paused(server), short_times():
                await unavailable(anext(feed), within=0.7)
                async with aclosing(directory.changes(0.05)) as another:
                    await unavailable(anext(another), within=0.7)
        async with aclosing(directory.changes(0.05)) as feed:
            assert await anext(feed) == 1


async def test_a_table_that_another_one_locks_makes_reads_fail_in_time(
    server: PostgresServer,
) -> None:
    async with opened(server) as directory:
        await with_tenant(directory, "a")
        url = str(directory._database.url.set(drivername="postgresql"))
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE tenants, api_keys, audit IN ACCESS EXCLUSIVE MODE")
            with short_times():
                await unavailable(*reads(directory), within=0.3)
                await unavailable(*writes(directory), within=0.3)
        assert len(await directory.audit(limit=9)) == 2
        await directory.create_tenant("b", actor="test")


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        pytest.param(PostgresServer.pause, PostgresServer.resume, id="silent"),
        pytest.param(PostgresServer.stop, PostgresServer.start, id="restarted"),
    ],
)
async def test_an_outage_at_any_moment_of_a_write_leaves_all_of_it_or_nothing(
    begin: Callable[[PostgresServer], None],
    end: Callable[[PostgresServer], None],
    server: PostgresServer,
) -> None:
    """Whatever happened, the same call again succeeds and the change is there once."""
    async with opened(server) as directory:
        await with_tenant(directory, "a", "b")
        a_set, another = {"style": digest("a")}, {"style": digest("b"), "tone": digest("a")}
        step = 1
        while True:
            before = await directory.current_set("acme")
            wanted = a_set if before.adapters == another else another
            put = partial(directory.put_set, "acme", wanted, expected=before.revision, actor="test")
            with Moment(directory, step, lambda: begin(server)) as moment, short_times():
                (outcome,) = await asyncio.gather(put(), return_exceptions=True)
            if moment.came:
                assert isinstance(outcome, DatabaseUnavailableError)
                end(server)
                step += 1
            elif not isinstance(outcome, BaseException):
                break
            after = await directory.current_set("acme")
            assert after.adapters in (before.adapters, wanted)
            await put()
            assert (await directory.current_set("acme")).adapters == wanted
            assert await check_history(directory, "acme") == before.revision + 1
        assert step > 10


@pytest.fixture
async def sqlite(tmp_path: Path) -> Path:
    """A database with a tenant and an adapter, which nobody has open."""
    path = tmp_path / "directory.db"
    directory = await Directory.open(f"sqlite:///{path}")
    await with_tenant(directory, "a")
    await directory.close()
    return path


@contextmanager
def locked(path: Path, lock: str) -> Iterator[None]:
    """By another process."""
    held, release = context.Event(), context.Event()
    args = (str(path), lock, held, release)
    process = context.Process(target=processes.lock_sqlite, args=args)
    process.start()
    assert held.wait(60)
    try:
        yield
    finally:
        release.set()
        process.join(60)
    assert process.exitcode == 0


async def test_while_another_process_writes_to_sqlite_only_writes_fail(sqlite: Path) -> None:
    directory = await Directory.open(f"sqlite:///{sqlite}")
    with locked(sqlite, "BEGIN IMMEDIATE"), short_times():
        await asyncio.gather(*reads(directory))
        await unavailable(*writes(directory), within=0.3)
    assert len(await directory.audit(limit=9)) == 2
    for call in writes(directory):
        await call
    actions = [row.action for row in await directory.audit(limit=4)]
    assert actions == ["tenant.delete", "set.put", "key.create", "tenant.create"]
    await directory.close()


async def test_where_another_process_keeps_sqlite_for_itself_reads_fail_in_time(
    sqlite: Path,
) -> None:
    with locked(sqlite, "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE"), short_times():
        directory = Directory(Database(f"sqlite:///{sqlite}"))
        await unavailable(*reads(directory), within=0.3)
        await unavailable(*writes(directory), within=0.3)
    assert [tenant.id for tenant in await directory.tenants()] == ["acme"]
    assert len(await directory.audit(limit=9)) == 2
    await directory.close()
