"""`/metrics`: the numbers are right and no client can add a series."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
from prometheus_client.parser import text_string_to_metric_families

from remix_runtime.engines.fake import FakeConfig
from server.live.sets import LiveSet
from server.metrics import MAX_SERIES
from tests.unit.server.harness import ADAPTERS, BASE, Server, eventually, serving

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(server: Server) -> Samples:
    response = await server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    if labels:  # a server without tenants has the empty one
        labels = {"tenant": "", **labels}
    return samples.get((f"remix_{name}", frozenset(labels.items())), 0.0)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_request_counts(server: Server, stream: bool) -> None:
    body = {"model": "pirate", "ignore_eos": True, "n": 2, "max_tokens": 7, "stream": stream}
    assert (await server.complete(**body)).status_code == 200
    assert (await server.chat(**body)).status_code == 200
    samples = await scrape(server)
    for endpoint in ("completions", "chat"):
        labels = {"adapter": "pirate", "endpoint": endpoint, "status": "200"}
        assert value(samples, "requests_total", **labels) == 1
    assert value(samples, "prompt_tokens_total", adapter="pirate") == 5 + 23
    assert value(samples, "generated_tokens_total", adapter="pirate") == 2 * 2 * 7
    assert value(samples, "generated_tokens_total", adapter=BASE) == 0
    for name, count in (
        ("queue_time", 4),
        ("time_to_first_token", 4),
        ("inter_token_latency", 4 * 6),
        ("request_duration", 2),
    ):
        assert value(samples, f"{name}_seconds_count", adapter="pirate") == count


async def test_times_are_measured(tmp_path: Path) -> None:
    config = FakeConfig(max_running=1, prefill_seconds=0.1, token_seconds=0.02)
    async with serving(tmp_path, config) as server:
        body = {"max_tokens": 5, "ignore_eos": True}
        start = monotonic()
        await asyncio.gather(server.complete(**body), server.complete(**body))
        wall = monotonic() - start
        samples = await scrape(server)

    def total(name: str) -> float:
        return value(samples, f"{name}_seconds_sum", adapter=BASE)

    # One request takes 0.1 s to its first token and 0.02 s to each of five; the second waits.
    assert 0.19 <= total("queue_time") < wall
    assert 0.19 + 0.24 <= total("time_to_first_token") < 2 * wall
    assert 2 * 4 * 0.019 <= total("inter_token_latency") < wall
    assert 0.2 + 0.39 <= total("request_duration") < 2 * wall


async def test_errors_by_type(server: Server) -> None:
    await server.complete(temperature=9)
    await server.complete(model="nobody")
    await server.complete(model="haiku", prompt="x" * 600)
    server.engine.fail_next_after = 0
    await server.complete(model="haiku")
    server.engine.fail_next_after = 1
    await server.complete(model="haiku", stream=True, ignore_eos=True)
    samples = await scrape(server)
    errors = {
        (BASE, "invalid_request_error"): 1,
        ("other", "model_not_found"): 1,
        ("haiku", "context_length_exceeded"): 1,
        ("haiku", "internal_error"): 2,
    }
    for (adapter, kind), count in errors.items():
        assert value(samples, "request_errors_total", adapter=adapter, type=kind) == count
    labels = {"adapter": "haiku", "endpoint": "completions", "status": "500"}
    assert value(samples, "requests_total", **labels) == 1


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize(
    ("body", "label"),
    [
        ({"model": "pirate"}, "pirate"),  # no prompt, no messages
        ({"model": "pirate", "temperature": "hot"}, "pirate"),
        ({"model": "haiku", "n": 10**9}, "haiku"),
        ({"model": BASE, "stop": 7}, BASE),
        ({"model": "pirat"}, "other"),
        ({"model": "Pirate", "n": 0}, "other"),
        ({"model": ["pirate"]}, "other"),
        ({"model": None}, "other"),
        ({"Model": "pirate"}, "other"),
        ("pirate", "other"),
        (["model", "pirate"], "other"),
    ],
)
async def test_a_refused_request_counts_for_the_model_that_it_names(
    server: Server, path: str, body: object, label: str
) -> None:
    assert (await server.client.post(f"/v1/{path}", json=body)).status_code == 400
    samples = await scrape(server)
    for name in (*ADAPTERS, BASE, "other"):
        labels = {"adapter": name, "type": "invalid_request_error"}
        assert value(samples, "request_errors_total", **labels) == (name == label)


async def test_prompts_of_refused_requests_are_not_tokens_in(tmp_path: Path) -> None:
    config = FakeConfig(max_running=1, max_waiting=1, token_seconds=0.01)
    async with serving(tmp_path, config) as server:
        await server.complete(prompt="12345", n=2, max_tokens=2, ignore_eos=True)
        running = asyncio.create_task(server.complete(prompt="1", ignore_eos=True))
        await eventually(lambda: server.engine.stats().running == 1)
        assert (await server.complete(prompt="123", n=2)).status_code == 503
        assert (await server.complete(prompt="123", logit_bias={"999": 1})).status_code == 400
        await running
        samples = await scrape(server)
    assert value(samples, "prompt_tokens_total", adapter=BASE) == 5 + 1


async def test_gauges_are_the_engines_stats(tmp_path: Path) -> None:
    config = FakeConfig(max_running=2, max_waiting=5, token_seconds=5)
    async with serving(tmp_path, config) as server:
        running = asyncio.create_task(server.complete(prompt="12345", n=3))
        await eventually(lambda: server.engine.stats().waiting == 1)
        samples = await scrape(server)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await eventually(lambda: server.engine.stats().running == 0)
        after = await scrape(server)
    expected = {
        "requests_running": 2,
        "requests_waiting": 1,
        "kv_used_tokens": 10,
        "kv_capacity_tokens": 1024,
        "adapter_slots_used": 2,
        "adapter_slots": 16,
        "engine_alive": 1,
    }
    assert {name: value(samples, name) for name in expected} == expected
    assert value(after, "requests_running") == value(after, "requests_waiting") == 0


async def test_tokens_that_were_guessed_ahead_are_counted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = replace(server.engine.stats(), tokens_proposed=7, tokens_accepted=5)
    monkeypatch.setattr(server.engine, "stats", lambda: stats)
    samples = await scrape(server)
    assert value(samples, "spec_decode_draft_tokens_total") == 7
    assert value(samples, "spec_decode_accepted_tokens_total") == 5


async def test_adapters_are_named_with_their_digests(server: Server) -> None:
    samples = await scrape(server)
    for name in ADAPTERS:
        assert value(samples, "adapter_info", adapter=name, digest=server.digests[name]) == 1


async def test_the_load_of_experts_by_digest_and_bounded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    load: dict[str, dict[str, tuple[int, ...]]] = {
        "a": {"up": (3, 1, 0), "down": (0, 4, 4)},
        "b": {"up": (0, 0)},
        "uncounted": {},
    }
    load |= {f"c{i}": {"up": (1,) * 50} for i in range(100)}
    asked: list[str] = []

    def expert_load(digest: str) -> dict[str, tuple[int, ...]]:
        asked.append(digest)
        return load[digest]

    live = LiveSet(adapters={f"name-{digest}": digest for digest in load})
    monkeypatch.setattr(server.services.sets, "_sets", {"": live, "other": live})
    monkeypatch.setattr(server.engine, "expert_load", expert_load)
    samples = await scrape(server)

    def found(name: str, **labels: str) -> float | None:
        return samples.get((f"remix_expert_{name}", frozenset(labels.items())))

    totals = [found("activations_total", digest="a", expert=str(i)) for i in range(4)]
    assert totals == [3, 5, 4, None]
    assert found("activations_total", digest="b", expert="1") == 0
    assert found("busiest_share", digest="a", module="up") == 0.75
    assert found("busiest_share", digest="a", module="down") == 0.5
    assert found("busiest_share", digest="b", module="up") is None
    assert found("activations_total", digest="c0", expert="49") == 1
    assert found("activations_total", digest="c99", expert="0") is None
    assert sum(name.startswith("remix_expert") for name, _ in samples) <= MAX_SERIES
    assert asked == list(load)[: len(asked)], "each once"
    assert len(asked) < len(load), "no more than get series"


async def test_the_engine_s_own_counts_are_told(server: Server) -> None:
    digest = server.digests["pirate"]
    before = await scrape(server)
    answer = await server.complete(model="pirate", prompt=[1, 2, 3, 5], max_tokens=1)
    assert answer.status_code == 200
    after = await scrape(server)
    for expert, tokens in ((0, 1), (1, 3)):
        labels = frozenset({"digest": digest, "expert": str(expert)}.items())
        name = "remix_expert_activations_total"
        assert after[name, labels] - before[name, labels] == tokens


async def test_clients_cannot_add_series(server: Server) -> None:
    async def probe() -> None:
        name = secrets.token_hex(8)
        await server.complete(model=name)
        await server.chat(model=name, **{name: name})
        await server.complete(**{"temperature": name})
        await server.client.post(f"/v1/completions/{name}")
        await server.client.get(f"/v1/models/{name}")

    await probe()
    before = (await scrape(server)).keys()
    for _ in range(200):
        await probe()
    samples = await scrape(server)
    assert samples.keys() == before
    labels = {"adapter": "other", "endpoint": "completions", "status": "404"}
    assert value(samples, "requests_total", **labels) == 201
