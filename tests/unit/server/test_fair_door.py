"""From the socket on, what one tenant sends takes nothing from another: not its place, its turn or
its share of the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from remix_runtime.engines.fake import ByteTokenizer, FakeConfig
from remix_runtime.fairness.queue import OUTPUT_WEIGHT, PROMPT_WEIGHT, service_bound
from remix_runtime.fairness.worker import FairWorker
from tests.unit.server.tenants import BASE, TenantServer, complete, tenant_serving

RUNNING = 4
CALLERS = 6
"""Requests that the quiet tenant has at a time: more than half the places, so some always wait."""
PER_CALLER = 12
PROMPT = "x" * 5


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TenantServer]:
    config = FakeConfig(max_running=RUNNING, max_waiting=12, token_seconds=0.0005)
    async with tenant_serving(tmp_path, config) as server:
        yield server


def body(**fields: Any) -> dict[str, Any]:
    return complete(BASE, **{"prompt": PROMPT, "max_tokens": 10, "ignore_eos": True, **fields})


def served(server: TenantServer, tenant: str) -> int:
    """Weighted tokens."""
    meters = [item.meter for item in server.engine.requests if item.tenant == tenant]
    prompts = sum(meter.prompt_tokens for meter in meters)
    return PROMPT_WEIGHT * prompts + OUTPUT_WEIGHT * sum(meter.output_tokens for meter in meters)


ABUSE: dict[str, tuple[int, dict[str, Any]]] = {
    "requests": (10 * CALLERS, {}),
    "n": (CALLERS, {"n": 10}),
    "prompt bytes": (CALLERS, {"prompt": 10 * PROMPT}),
    "prompts": (CALLERS, {"prompt": [PROMPT] * 10}),
    "stop strings": (CALLERS, {"stop": ["x" * 990 + str(i) for i in range(10)], "n": 2}),
}


@pytest.mark.parametrize("kind", ABUSE)
async def test_ten_times_the_load_takes_no_more_than_half(server: TenantServer, kind: str) -> None:
    loud = await server.tenant("loud", may_use_base=True)
    quiet = await server.tenant("quiet", may_use_base=True)
    callers, fields = ABUSE[kind]
    seen: set[int] = set()

    async def flood() -> None:
        while True:
            answer = await loud.post("/v1/completions", json={**body(), **fields})
            seen.add(answer.status_code)
            await asyncio.sleep(0.002)

    async def call() -> None:
        for _ in range(PER_CALLER):
            answer = await quiet.post("/v1/completions", json=body())
            assert answer.status_code == 200, answer.text

    flooding = [asyncio.create_task(flood()) for _ in range(callers)]
    try:
        await asyncio.gather(*(call() for _ in range(CALLERS)))
        loud_tokens, quiet_tokens = served(server, "loud"), served(server, "quiet")
    finally:
        for task in flooding:
            task.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)
    assert seen <= {200, 503}
    assert loud_tokens > 0
    longest = max(len(item.prompt_token_ids) for item in server.engine.requests)
    bound = service_bound(longest, RUNNING * (longest + 10))
    assert quiet_tokens == CALLERS * PER_CALLER * (len(PROMPT) + OUTPUT_WEIGHT * 10)
    assert loud_tokens <= quiet_tokens + bound
    assert quiet_tokens > bound, "or the bound would say nothing"


CHAT = {"model": BASE, "messages": [{"role": "user", "content": "x" * 60}], "max_tokens": 5}
TOKENIZED: dict[str, dict[str, Any]] = {
    "/v1/completions": complete(BASE, prompt="x" * 60),
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"model": BASE, "input": "x" * 60, "max_output_tokens": 5},
    "/v1/messages": CHAT,
    "/v1/responses/input_tokens": {"model": BASE, "input": "x" * 60},
    "/v1/messages/count_tokens": {k: v for k, v in CHAT.items() if k != "max_tokens"},
    "/tokenize": {"prompt": "x" * 60},
    "/detokenize": {"tokens": [120] * 60},
}


@pytest.mark.parametrize("path", TOKENIZED)
async def test_the_tokenizer_works_for_a_tenant_in_its_turn_and_for_its_tokens(
    server: TenantServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("server.api.calls._SHORT_BODY_BYTES", 0)
    now = time.monotonic()
    server.services.quotas._clock = lambda: now
    client = await server.tenant("a", tokens_per_minute=1000, may_use_base=True)
    tenants = []
    run = FairWorker.run

    async def noted(self: FairWorker, tenant: str, function: Callable[[], Any]) -> Any:
        tenants.append(tenant)
        return await run(self, tenant, function)

    monkeypatch.setattr(FairWorker, "run", noted)
    answer = await client.post(path, json=TOKENIZED[path])
    assert answer.status_code == 200, answer.text
    assert tenants == ["a"]
    assert await left(client) <= 1000 - 6, "a tenth of its tokens, or all of what was computed"


async def left(client: httpx.AsyncClient) -> int:
    """The tokens that remain, asked in a way that takes none."""
    answer = await client.post("/v1/completions", json=complete(BASE, max_tokens=500, n=8))
    assert answer.status_code == 429
    return int(answer.headers["x-ratelimit-remaining-tokens"])


@pytest.mark.parametrize("path", TOKENIZED)
async def test_what_the_quota_cannot_pay_is_not_tokenized(
    server: TenantServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    client = await server.tenant("a", tokens_per_minute=5, may_use_base=True)

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("tokenized")

    monkeypatch.setattr(ByteTokenizer, "encode", refuse)
    monkeypatch.setattr(ByteTokenizer, "decode", refuse)
    assert (await client.post(path, json=TOKENIZED[path])).status_code == 429


@pytest.mark.parametrize("fields", [{"n": 5}, {"max_tokens": 96}, {"prompt": [PROMPT] * 10}])
async def test_nor_what_its_copies_and_answers_would_take(
    server: TenantServer, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    client = await server.tenant("a", tokens_per_minute=100, may_use_base=True)

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("tokenized")

    monkeypatch.setattr(ByteTokenizer, "encode", refuse)
    answer = await client.post("/v1/completions", json={**body(max_tokens=20), **fields})
    assert answer.status_code == 429
    assert "requested" in answer.json()["error"]["message"]
