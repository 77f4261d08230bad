"""Quotas, swaps and cold adapters as clients meet them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remix_runtime.engines.fake import FakeConfig
from tests.unit.server.harness import eventually, sse_events
from tests.unit.server.tenants import BASE, TenantServer, complete, tenant_serving


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TenantServer]:
    async with tenant_serving(tmp_path, FakeConfig(token_seconds=0.005)) as server:
        yield server


def stop_clock(server: TenantServer) -> None:
    """Nothing refills from now on."""
    now = time.monotonic()
    server.services.quotas._clock = lambda: now


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_per_minute(server: TenantServer, stream: bool) -> None:
    client = await server.tenant("a", requests_per_minute=3, may_use_base=True)
    for left in (2, 1, 0):
        answer = await client.post("/v1/completions", json=complete(BASE, stream=stream))
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    answer = await client.post("/v1/completions", json=complete(BASE, stream=stream))
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answer.headers["retry-after"]) <= 20
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    other = await server.tenant("b", may_use_base=True)
    assert (await other.post("/v1/completions", json=complete(BASE))).status_code == 200


async def test_refusals_count_for_the_model_if_the_key_may_use_it(server: TenantServer) -> None:
    for tenant, seed, quota in (("a", 1, {"requests_per_minute": 1}), ("b", 2, {})):
        client = await server.tenant(tenant, **quota)
        await server.put(tenant, {f"of-{tenant}": await server.adapter(seed)})
        for body in (
            complete(f"of-{tenant}"),
            complete(f"of-{tenant}"),  # over a's quota
            complete(f"of-{tenant}", temperature=9),
            complete("of-a" if tenant == "b" else "of-b", temperature=9),
            complete(BASE, temperature=9),
        ):
            await client.post("/v1/completions", json=body)
    text = (await server.admin.get("/metrics")).text
    counted = {
        tuple(re.findall(r'"(.*?)"', line)): float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("remix_requests_total{")
    }
    assert counted == {
        ("of-a", "completions", "200", "a"): 1,
        ("of-a", "completions", "429", "a"): 2,
        ("other", "completions", "429", "a"): 2,
        ("of-b", "completions", "200", "b"): 2,
        ("of-b", "completions", "400", "b"): 1,
        ("other", "completions", "400", "b"): 2,
    }


POSTS = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize"]


@pytest.mark.parametrize("path", POSTS)
async def test_a_body_that_is_sent_by_halves_holds_a_place(server: TenantServer, path: str) -> None:
    client = await server.tenant("a", max_concurrent=1, may_use_base=True)
    begun, rest = asyncio.Event(), asyncio.Event()

    async def halves() -> AsyncIterator[bytes]:
        begun.set()
        yield b'{"model": '
        await rest.wait()
        yield b"3}"

    headers = {"content-type": "application/json"}
    half = asyncio.create_task(client.post(path, content=halves(), headers=headers))
    await begun.wait()
    assert (await client.post("/v1/completions", json=complete(BASE))).status_code == 429
    rest.set()
    assert (await half).status_code == 400
    assert (await client.post("/v1/completions", json=complete(BASE))).status_code == 200


@pytest.mark.parametrize("path", POSTS)
async def test_a_large_body_over_the_quota_is_not_read(server: TenantServer, path: str) -> None:
    client = await server.tenant("a", requests_per_minute=1, may_use_base=True)
    read = 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(20):
            read += 1
            yield b" " * 100_000

    headers = {"content-type": "application/json"}
    answers = [await client.post(path, content=large(), headers=headers) for _ in range(2)]
    # The first one counts, although it is nothing that can be answered.
    assert [answer.status_code for answer in answers] == [400, 429]
    assert read == 20


async def test_tokens_per_minute_are_those_that_were_used(server: TenantServer) -> None:
    stop_clock(server)
    client = await server.tenant("a", tokens_per_minute=100, may_use_base=True)
    body = complete(BASE, prompt="x" * 20, max_tokens=70, ignore_eos=False, stop_token_ids=None)
    answer = await client.post("/v1/completions", json={**body, "max_tokens": 81})
    assert answer.status_code == 429
    assert "more than the limit" in answer.json()["error"]["message"]
    answer = await client.post("/v1/completions", json={**body, "max_tokens": 2, "n": 2})
    assert answer.status_code == 200
    # Both copies of the prompt are computed, though the usage tells one.
    used = answer.json()["usage"]["total_tokens"] + 20
    answer = await client.post("/v1/completions", json={**body, "max_tokens": 1})
    left = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert left == 100 - used - 21, "sent with the answer, so this request's own are reserved"
    answer = await client.post("/v1/completions", json={**body, "max_tokens": 70})
    assert answer.status_code == 429
    assert answer.headers["x-ratelimit-limit-tokens"] == "100"


async def test_what_is_refused_costs_a_share_of_what_was_tokenized(server: TenantServer) -> None:
    stop_clock(server)
    client = await server.tenant("a", tokens_per_minute=1000, may_use_base=True)
    server.engine.kill("for this test")
    for _ in range(9):
        body = complete(BASE, prompt="x" * 100, max_tokens=400)
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 503
    answer = await client.post("/v1/completions", json=complete(BASE, max_tokens=500, n=8))
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 1000 - 9 * 10


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_before_the_first_token_pays_for_what_was_scheduled(
    tmp_path: Path, stream: bool
) -> None:
    slow = FakeConfig(max_running=2, prefill_seconds=60)
    async with tenant_serving(tmp_path, slow, keep_alive_seconds=0) as server:
        stop_clock(server)
        client = await server.tenant("a", tokens_per_minute=1000, may_use_base=True)
        body = complete(BASE, prompt="x" * 100, max_tokens=100, n=3, stream=stream)
        request = asyncio.create_task(client.post("/v1/completions", json=body))
        await eventually(lambda: server.engine.stats().running == 2)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await eventually(lambda: server.engine.stats().running == 0)
        answer = await client.post("/v1/completions", json=complete(BASE, max_tokens=500, n=8))
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert left == 800, "two copies of three were in prefill"


async def test_concurrency_is_of_sequences(server: TenantServer) -> None:
    client = await server.tenant("a", max_concurrent=3, may_use_base=True)
    chat = {"model": BASE, "messages": [{"role": "user", "content": "x"}]}
    for path, body in (
        ("/v1/completions", complete(BASE, n=4)),
        ("/v1/completions", complete(BASE, prompt=["a", "b"], n=2)),
        ("/v1/chat/completions", {**chat, "n": 4}),
    ):
        answer = await client.post(path, json=body)
        assert answer.status_code == 429, answer.text
        assert "this request has 4" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "1"
    body = complete(BASE, max_tokens=50, ignore_eos=True, n=2)
    running = asyncio.create_task(client.post("/v1/completions", json=body))
    await eventually(lambda: server.engine.stats().running == 2)
    assert (await client.post("/v1/completions", json=body)).status_code == 429
    assert (await client.post("/v1/completions", json=complete(BASE))).status_code == 200
    assert (await running).status_code == 200
    assert (await client.post("/v1/completions", json={**body, "n": 3})).status_code == 200


async def test_concurrency(server: TenantServer) -> None:
    client = await server.tenant("a", max_concurrent=2, may_use_base=True)
    body = complete(BASE, max_tokens=50, ignore_eos=True)
    running = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(2)]
    await eventually(lambda: server.engine.stats().running == 2)
    assert (await client.post("/v1/completions", json=body)).status_code == 429
    assert [task.status_code for task in await asyncio.gather(*running)] == [200, 200]
    assert (await client.post("/v1/completions", json=body)).status_code == 200


async def test_a_request_ends_on_the_adapter_it_began_with(server: TenantServer) -> None:
    client = await server.tenant("a")
    old, new = await server.adapter(1), await server.adapter(2)
    await server.put("a", {"style": old})
    body = complete("style", max_tokens=60, ignore_eos=True, stream=True)
    alone = await client.post("/v1/completions", json=body)
    running = asyncio.create_task(client.post("/v1/completions", json=body))
    await eventually(lambda: server.engine.stats().running == 1)
    await server.put("a", {"style": new})
    assert (await client.post("/v1/completions", json=complete("style"))).json()[
        "system_fingerprint"
    ] == new
    assert not running.done()
    assert old in server.services.adapters.digests
    answer = await running

    def told(text: str) -> tuple[set[str], str]:
        events = sse_events(text)
        return (
            {event["system_fingerprint"] for event in events},
            "".join(event["choices"][0]["text"] for event in events),
        )

    assert told(answer.text) == told(alone.text)
    assert told(answer.text)[0] == {old}
    await server.services.adapters.settle()
    assert server.services.adapters.digests == {new}


async def test_a_restart_serves_the_same_sets_from_the_first_request(tmp_path: Path) -> None:
    async with tenant_serving(tmp_path) as server:
        client = await server.tenant("a", requests_per_minute=100)
        digest = await server.adapter(1)
        await server.put("a", {"style": digest})
        key = client.headers["authorization"].removeprefix("Bearer ")
        before = (await client.post("/v1/completions", json=complete("style"))).json()
    async with tenant_serving(tmp_path) as server:
        client = await server.client(key=key)
        assert server.engine.stats().adapters_loaded == 0
        answers = await asyncio.gather(
            *(client.post("/v1/completions", json=complete("style")) for _ in range(5))
        )
        for answer in answers:
            assert answer.json()["choices"] == before["choices"]
            assert answer.json()["system_fingerprint"] == digest


async def test_a_folder_that_is_gone_is_503_for_its_requests_only(tmp_path: Path) -> None:
    async with tenant_serving(tmp_path) as server:
        client = await server.tenant("a")
        lost, kept = await server.adapter(1), await server.adapter(2)
        await server.put("a", {"lost": lost, "kept": kept})
        key = client.headers["authorization"].removeprefix("Bearer ")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "data" / "store" / "adapters" / lost / name).unlink()
    async with tenant_serving(tmp_path) as server:
        client = await server.client(key=key)
        answer = await client.post("/v1/completions", json=complete("lost"))
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_unavailable"
        assert str(tmp_path) not in answer.text
        assert int(answer.headers["retry-after"]) >= 1
        assert (await client.post("/v1/completions", json=complete("kept"))).status_code == 200


async def test_series_carry_the_tenant_and_end_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.app.MAX_SERIES", 3)
    async with tenant_serving(tmp_path) as server:
        digest = await server.adapter(1)
        for number in range(5):
            client = await server.tenant(f"t{number}")
            await server.put(f"t{number}", {"style": digest})
            assert (await client.post("/v1/completions", json=complete("style"))).is_success
        text = (await server.admin.get("/metrics")).text
    requests = [line for line in text.splitlines() if line.startswith("remix_requests_total{")]
    assert any('adapter="style"' in line and 'tenant="t0"' in line for line in requests)
    assert any('adapter="other"' in line and 'tenant="other"' in line for line in requests)
    assert len({line for line in text.splitlines() if "remix_prompt_tokens_total{" in line}) <= 7
    assert 'remix_set_swaps_total{outcome="applied"} 5.0' in text
    assert "remix_sets_behind 0.0" in text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_alone_costs_its_tokens(server: TenantServer, stream: bool) -> None:
    client = await server.tenant("a", tokens_per_minute=7, may_use_base=True)
    alone = complete(BASE, max_tokens=0, echo=True, logprobs=1, stream=stream)
    assert (await client.post("/v1/completions", json=alone)).status_code == 200
    answer = await client.post("/v1/completions", json=alone)
    assert answer.status_code == 429
    assert answer.headers["x-ratelimit-remaining-tokens"] == "2"
