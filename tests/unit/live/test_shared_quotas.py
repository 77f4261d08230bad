"""Quotas of several servers on one PostgreSQL: simulated servers, each with its own clock and its
own connections, some of them killed, cut off or with clocks that jump."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psycopg
import pytest

from remix_runtime.watch import Watch
from server.live.leasing import QUOTAS_TASK, Lender
from server.live.quotas import Admission, Quotas, RateLimitedError
from server.tenancy import Directory, leases
from server.tenancy.database import Database
from server.tenancy.errors import DatabaseUnavailableError
from server.tenancy.records import Quota
from tests.postgres import PostgresServer

MAY_WAIT = 20.0
"""Seconds by which something has happened, on any machine."""


@dataclass
class Node:
    """One server, as far as quotas go."""

    directory: Directory
    lender: Lender
    quotas: Quotas
    watch: Watch
    offset: float = 0.0
    """What its clock is ahead."""

    async def admitted(self, tenant: str, quota: Quota) -> Admission | None:
        try:
            return await self.quotas.obtain(tenant, quota)
        except RateLimitedError:
            return None

    async def reserved(self, tenant: str, quota: Quota, tokens: int) -> Admission | None:
        admission = await self.quotas.obtain(tenant, quota)
        try:
            await admission.obtain_tokens(tokens)
        except RateLimitedError:
            return None
        return admission

    async def kill(self) -> None:
        """Without giving anything back."""
        await self.watch.stop()
        await self.directory.close()


@asynccontextmanager
async def running(url: str) -> AsyncIterator[Node]:
    directory = await Directory.open(url)
    assert directory.leases is not None
    watch = Watch()
    made: list[Node] = []

    def clock() -> float:
        return time.monotonic() + (made[0].offset if made else 0.0)

    lender = Lender(directory.leases, watch, clock)
    node = Node(directory, lender, Quotas(clock, lender, lender.tenants), watch)
    made.append(node)
    await lender.start()
    try:
        yield node
    finally:
        await lender.stop()
        await node.kill()


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.fresh_database()


Start = Callable[[], Awaitable[Node]]


@pytest.fixture
async def start(url: str) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start() -> Node:
            return await stack.enter_async_context(running(url))

        yield start


async def with_quota(node: Node, **limits: int) -> Quota:
    quota = Quota(**limits)
    if not await node.directory.tenants():
        await node.directory.create_tenant("t", actor="test")
    await node.directory.set_quota("t", quota, actor="test")
    return quota


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(MAY_WAIT):
        while not await condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.05)


async def sees(node: Node, servers: int) -> None:
    async def seen() -> bool:
        return node.lender.servers == servers

    await until(seen)


async def test_requests_by_the_minute_hold_for_all_servers_whoever_is_asked(start: Start) -> None:
    nodes = [await start() for _ in range(3)]
    quota = await with_quota(nodes[0], requests_per_minute=3)
    began = time.monotonic()
    results = [await nodes[i % 3].admitted("t", quota) for i in range(12)]
    minutes = (time.monotonic() - began) / 60
    let_in = sum(result is not None for result in results)
    assert 3 <= let_in <= 3 * (1 + minutes)


async def test_all_at_once_on_all_servers_get_the_limit_and_no_more(start: Start) -> None:
    nodes = [await start() for _ in range(3)]
    quota = await with_quota(nodes[0], requests_per_minute=40)
    began = time.monotonic()
    results = await asyncio.gather(
        *(node.admitted("t", quota) for node in nodes for _ in range(40))
    )
    minutes = (time.monotonic() - began) / 60
    let_in = sum(result is not None for result in results)
    assert let_in <= 40 * (1 + minutes)

    async def exhausted() -> bool:
        nonlocal let_in
        more = [await node.admitted("t", quota) for node in nodes]
        let_in += sum(item is not None for item in more)
        return let_in >= 40

    await until(exhausted)  # nothing is lost in some server's stock


async def test_one_place_goes_from_server_to_server_with_the_client(start: Start) -> None:
    one, two = await start(), await start()
    quota = await with_quota(one, max_concurrent=1)
    await sees(one, 2)
    for turn in range(6):
        here, there = (one, two) if turn % 2 else (two, one)
        with await here.quotas.obtain("t", quota):
            if turn == 0:
                with pytest.raises(RateLimitedError, match="other servers"):
                    await there.quotas.obtain("t", quota)
                # Not before that is forgotten would it ask again.
                there.quotas._usage["t"]._in_vain.clear()  # type: ignore[attr-defined]


async def test_places_hold_for_all_servers(start: Start) -> None:
    nodes = [await start() for _ in range(3)]
    quota = await with_quota(nodes[0], max_concurrent=5)
    got = [await nodes[i % 3].admitted("t", quota) for i in range(9)]
    held = [item for item in got if item is not None]
    assert len(held) == 5
    for item in held:
        item.__exit__(None)

    async def all_on_one() -> bool:
        more = [await nodes[2].admitted("t", quota) for _ in range(5)]
        got = [item for item in more if item is not None]
        for item in got:
            item.__exit__(None)
        return len(got) == 5

    await until(all_on_one)


async def test_tokens_that_come_back_on_one_server_are_there_for_another(start: Start) -> None:
    one, two = await start(), await start()
    quota = await with_quota(one, tokens_per_minute=1000)
    first = await one.reserved("t", quota, 900)
    assert first is not None
    assert await two.reserved("t", quota, 900) is None
    first.settle(100)

    async def all_of_it() -> bool:
        return await two.reserved("t", quota, 850) is not None

    await until(all_of_it)
    assert await one.reserved("t", quota, 300) is None


async def test_a_tenant_on_one_of_two_servers_has_its_whole_quota_there(start: Start) -> None:
    one, two = await start(), await start()
    quota = await with_quota(one, tokens_per_minute=1000)
    await sees(one, 2)
    for node in (one, two):
        with await node.quotas.obtain("t", quota) as admission:
            await admission.obtain_tokens(1)  # from now on each has a stock
            admission.settle(1)
    assert await one.reserved("t", quota, 990) is not None


async def test_one_server_asks_no_more_once_it_has_its_quota(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await start()
    quota = await with_quota(node, requests_per_minute=1000, tokens_per_minute=10**6)
    assert await node.reserved("t", quota, 10) is not None
    usage = node.quotas._usage["t"]

    async def has_all() -> bool:
        return usage.requests is not None and usage.requests.level > 900

    await until(has_all)

    async def refuse(*_: object) -> bool:
        raise AssertionError("a request waits for the database")

    monkeypatch.setattr(node.lender, "more", refuse)
    for _ in range(500):
        with await node.quotas.obtain("t", quota) as admission:
            await admission.obtain_tokens(1000)


async def test_what_a_killed_server_held_comes_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 5.0)
    dies, lives = await start(), await start()
    quota = await with_quota(lives, max_concurrent=2, requests_per_minute=100)
    for _ in range(2):
        assert await dies.admitted("t", quota) is not None
    assert await lives.admitted("t", quota) is None
    await dies.kill()

    async def comes_back() -> bool:
        return await lives.admitted("t", quota) is not None

    await until(comes_back)
    assert lives.lender.servers == 1


async def test_a_server_that_is_cut_off_counts_alone_and_never_opens_the_door(
    start: Start, postgres: PostgresServer
) -> None:
    one, two = await start(), await start()
    quota = await with_quota(one, requests_per_minute=600, max_concurrent=2)
    await sees(one, 2)
    await sees(two, 2)
    first = await one.admitted("t", quota)
    assert first is not None
    first.__exit__(None)
    postgres.stop()
    try:

        async def alone() -> bool:
            return one.lender.servers == two.lender.servers == 0

        await until(alone)
        # A part of the rate, from nothing; a part of the places.
        held = None
        for node in (one, two):
            usage = node.quotas._usage.get("t")
            assert usage is None or usage.requests is None or usage.requests.left(now(node)) < 300

            async def one_gets_in(node: Node = node) -> bool:
                nonlocal held
                held = await node.admitted("t", quota)
                return held is not None

            await until(one_gets_in)
            assert await node.admitted("t", quota) is None, "its part is one place"
            assert held is not None
            held.__exit__(None)
        assert one.watch.failing in ((), (QUOTAS_TASK,))
    finally:
        postgres.start()
    await sees(one, 2)
    assert await one.admitted("t", quota) is not None


def now(node: Node) -> float:
    return node.quotas._clock()


async def test_alone_a_limit_smaller_than_the_servers_lets_nothing_run(start: Start) -> None:
    one, _ = await start(), await start()
    quota = await with_quota(one, max_concurrent=1)
    await sees(one, 2)
    one.offset += 100  # its leases have run out
    one.lender._is_broken = True
    assert await one.admitted("t", quota) is None


async def test_a_servers_clock_that_jumps_makes_no_units(start: Start) -> None:
    one, two = await start(), await start()
    quota = await with_quota(one, requests_per_minute=10)
    began = time.monotonic()
    let_in = 0
    for jump in (0.0, 3600.0, 86400.0):
        one.offset += jump
        for node in (one, two):
            for _ in range(8):
                let_in += await node.admitted("t", quota) is not None
    # Ahead, it takes its leases for ended and may count alone until its next exchange.
    assert 10 <= let_in <= 10 * (1 + (time.monotonic() - began) / 60) + 2 * 10 / 2


async def test_a_server_that_comes_too_late_begins_anew(start: Start, url: str) -> None:
    one, two = await start(), await start()
    quota = await with_quota(one, max_concurrent=2)
    assert await one.admitted("t", quota) is not None
    name = one.lender._standing.server
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "UPDATE quota_servers SET seen = seen - interval '1 hour' WHERE id = %s", [name]
        )

    async def renamed() -> bool:
        return one.lender._standing.server != name and one.lender.servers == 2

    await until(renamed)
    # What it runs, it told again.
    assert await two.admitted("t", quota) is not None
    assert await two.admitted("t", quota) is None


async def test_an_exchange_with_a_silent_database_ends_in_time(
    start: Start, url: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXCHANGE_SECONDS", 0.2)
    database = Database(url)
    await (await Directory.open(url)).close()
    postgres.pause()
    try:
        with pytest.raises(DatabaseUnavailableError):
            await leases.Leases(database).exchange("a", {}, enters=True)
    finally:
        postgres.resume()
    await database.close()
