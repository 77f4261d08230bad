"""Two servers on one PostgreSQL under load: each kind of limit holds for both together."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.held import Held
from tests.postgres import PostgresServer
from tests.served import FAKE, Served, served, tenants

CLIENTS = 4
"""Of each server."""
SECONDS = 2.5
BODY = {"model": "fake-base", "prompt": "Hello", "max_tokens": 15, "ignore_eos": True}
PADDING = 1 << 17
"""Of a body that is not read of a refused request."""
TOKENS = 20
"""Of one such request."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> AsyncIterator[list[Served]]:
    root, url = tmp_path_factory.mktemp("servers"), postgres.fresh_database()
    async with AsyncExitStack() as stack:
        starting = [
            stack.enter_async_context(
                served(
                    root / f"log-{number}",
                    *(*FAKE, *tenants(root / str(number), "--database-url", url)),
                )
            )
            for number in range(2)
        ]
        yield list(await asyncio.gather(*starting))


async def load(client: httpx.AsyncClient, until: float, seen: Counter[int]) -> None:
    while time.monotonic() < until:
        answer = await client.post("/v1/completions", json=BODY)
        seen[answer.status_code] += 1
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("limits", "most", "of_one"),
    [
        ({"requests_per_minute": 120}, 120, 1),
        ({"requests_per_minute": 3}, 3, 1),
        ({"tokens_per_minute": 2000}, 2000, TOKENS),
    ],
    ids=str,
)
async def test_what_both_let_in_is_one_quota(
    servers: list[Served], limits: dict[str, Any], most: int, of_one: int
) -> None:
    name = f"t{most}"
    key = await servers[0].tenant(name, **limits)
    began = time.monotonic()
    seen: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(item.client(key)) for item in servers]
        await asyncio.gather(
            *(load(client, began + SECONDS, seen) for client in clients for _ in range(CLIENTS))
        )
        minutes = (time.monotonic() - began) / 60
        assert set(seen) <= {200, 429}
        assert seen[200] * of_one <= most * (1 + minutes)
        # What is not used is in somebody's stock at most, and comes to whoever asks.
        async with asyncio.timeout(60):
            while seen[200] * of_one < most or not seen[429]:
                for client in clients:
                    answer = await client.post("/v1/completions", json=BODY)
                    seen[answer.status_code] += 1
        minutes = (time.monotonic() - began) / 60
        assert seen[200] * of_one <= most * (1 + minutes)


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
async def test_what_runs_on_both_is_one_limit(servers: list[Served]) -> None:
    key = await servers[1].tenant("places", max_concurrent=3)
    held = [await Held.open(servers[number % 2].url) for number in range(6)]
    # A request holds its place before its body is there.
    codes = [await item.begin("/v1/completions", BODY, key, padding=PADDING) for item in held]
    assert Counter(codes) == {100: 3, 429: 3}
    for item in held:
        if item.status == 100:
            item.send()
            await item.finish()
        item.writer.close()
    # All of them on one server, a moment after they have ended on both.
    async with asyncio.timeout(20):
        while True:
            held = [await Held.open(servers[0].url) for _ in range(3)]
            codes = [
                await item.begin("/v1/completions", BODY, key, padding=PADDING) for item in held
            ]
            for item in held:
                item.writer.close()
            if codes == [100] * 3:
                break
