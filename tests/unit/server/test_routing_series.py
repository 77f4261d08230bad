"""Series of routing by adapter, and those under vLLM's names that routers read."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from remix_runtime.adapter.load import Routing, RoutingFlag, judge
from remix_runtime.contracts import TrainedLoad
from remix_runtime.engines.fake import FakeConfig
from server.live.sets import LiveSet
from server.vllm_series import MAX_NAMES
from tests.unit.server.harness import BASE, Server, eventually, serving

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(server: Server) -> Samples:
    response = await server.client.get("/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def of(samples: Samples, prefix: str, **wanted: str) -> dict[tuple[str, str], float]:
    """Values by name and flag of the series with these labels."""
    found = {}
    for (name, labels), value in samples.items():
        given = dict(labels)
        if name.startswith(prefix) and wanted.items() <= given.items():
            found[name.removeprefix("remix_adapter_"), given.get("flag", "")] = value
    return found


EVEN = {name: [3000] * 4 for name in ("up", "down")}
LAST_TWO = {name: [0, 0, 6000, 6000] for name in ("up", "down")}


def judged(load: dict[str, list[int]]) -> Routing:
    return judge(load, k=2, trained=TrainedLoad(tokens=6000, modules=EVEN))


ROUTING = ("remix_adapter_routing", "remix_adapter_effective", "remix_adapter_dead")


def routing_of(samples: Samples, **wanted: str) -> dict[tuple[str, str], float]:
    return {k: v for prefix in ROUTING for k, v in of(samples, prefix, **wanted).items()}


async def test_routing_by_adapter_until_it_leaves(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {"healthy": "a", "collapsed": "b", "quiet": "c", "new": "d"}
    latest = {"a": judged(EVEN), "b": judged(LAST_TWO), "c": judged({"up": [5, 5, 5, 5]})}
    monkeypatch.setattr(server.services.routing, "_latest", latest)
    sets = {"acme": LiveSet(adapters=digests), "zoo": LiveSet(adapters={"other": "b"})}
    monkeypatch.setattr(server.services.sets, "_sets", sets)
    samples = await scrape(server)
    assert routing_of(samples, tenant="acme", adapter="healthy") == {
        ("routing_entropy", ""): pytest.approx(1),
        ("effective_experts", ""): pytest.approx(4),
        ("dead_experts", ""): 0,
        ("routing_drift", ""): 0,
        ("routing_flag", "drifted"): 0,
        ("routing_flag", "collapsed"): 0,
    }
    collapsed = routing_of(samples, tenant="acme", adapter="collapsed")
    assert collapsed == {
        ("routing_entropy", ""): pytest.approx(0.5),
        ("effective_experts", ""): pytest.approx(2),
        ("dead_experts", ""): 4,
        ("routing_drift", ""): pytest.approx(latest["b"].drift),
        ("routing_flag", "drifted"): 1,
        ("routing_flag", "collapsed"): 1,
    }
    assert routing_of(samples, tenant="zoo", adapter="other") == collapsed
    assert not routing_of(samples, adapter="quiet")
    assert not routing_of(samples, adapter="new")
    del sets["acme"]
    samples = await scrape(server)
    assert not routing_of(samples, tenant="acme")
    assert routing_of(samples, tenant="zoo")


async def test_an_adapter_without_a_training_load_has_no_drift(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    latest = {server.digests["pirate"]: judge(EVEN, k=2)}
    monkeypatch.setattr(server.services.routing, "_latest", latest)
    found = routing_of(await scrape(server), adapter="pirate")
    assert ("routing_drift", "") not in found
    assert found["routing_flag", "drifted"] == 0


async def test_series_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    latest = {str(i): judged(EVEN) for i in range(50)}
    monkeypatch.setattr(server.services.routing, "_latest", latest)
    monkeypatch.setattr(server.services.metrics._collector, "_max_series", 7)
    live = LiveSet(adapters={f"name{digest}": digest for digest in latest})
    monkeypatch.setattr(server.services.sets, "_sets", {"": live})
    samples = await scrape(server)
    names = {dict(labels)["adapter"] for name, labels in samples if name.startswith(ROUTING)}
    assert len(names) == 7


async def test_traffic_of_a_server_without_tenants_is_watched_too(server: Server) -> None:
    prompt = {"prompt": [1] * 500, "max_tokens": 1}
    for _ in range(3):
        assert (await server.complete(model="pirate", **prompt)).status_code == 200
    await server.services.routing.look()
    found = routing_of(await scrape(server))
    assert found["routing_flag", "collapsed"] == 1
    assert found["effective_experts", ""] == 1
    assert RoutingFlag.DRIFTED not in found


# -- vLLM's names ---------------------------------------------------------------------------------


def info_of(samples: Samples) -> tuple[dict[str, str], float]:
    ((labels, value),) = [
        (dict(labels), value)
        for (name, labels), value in samples.items()
        if name == "vllm:lora_requests_info"
    ]
    return labels, value


def gauge(samples: Samples, name: str) -> float:
    return samples[f"vllm:{name}", frozenset({"model_name": BASE, "engine": "0"}.items())]


async def test_adapters_with_requests_are_named_as_vllm_names_them(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeConfig(max_running=2, token_seconds=0.01)) as server:
        labels, value = info_of(await scrape(server))
        assert labels == {
            "max_lora": "16",
            "running_lora_adapters": "",
            "waiting_lora_adapters": "",
        }
        assert time.time() - 60 < value <= time.time()
        long: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True}
        models = ("pirate", BASE, "haiku", "pirate")
        tasks = [asyncio.create_task(server.complete(model=m, **long)) for m in models]
        await eventually(lambda: server.engine.stats().waiting == 2)
        in_flight = server.services.metrics._in_flight
        await eventually(lambda: in_flight.running == "pirate")
        samples = await scrape(server)
        labels, _ = info_of(samples)
        assert labels["running_lora_adapters"] == "pirate"
        assert labels["waiting_lora_adapters"] == "haiku,pirate"
        assert gauge(samples, "num_requests_running") == 2
        assert gauge(samples, "num_requests_waiting") == 2
        stats = server.engine.stats()
        assert 0 < gauge(samples, "kv_cache_usage_perc") < 1
        assert gauge(samples, "kv_cache_usage_perc") == pytest.approx(
            stats.kv_tokens_used / stats.kv_tokens_total, rel=0.5
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await eventually(lambda: server.engine.stats().running == 0)
        labels, _ = info_of(await scrape(server))
        assert labels["running_lora_adapters"] == labels["waiting_lora_adapters"] == ""


async def test_requests_that_fail_leave_the_lists(server: Server) -> None:
    server.engine.fail_next_after = 0
    assert (await server.complete(model="haiku")).status_code == 500
    server.engine.fail_next_after = 1
    await server.complete(model="haiku", stream=True, ignore_eos=True)
    assert (await server.complete(model="haiku", n=3, max_tokens=2)).status_code == 200
    assert (await server.complete(model="nobody")).status_code == 404
    labels, _ = info_of(await scrape(server))
    assert labels["running_lora_adapters"] == labels["waiting_lora_adapters"] == ""


async def test_the_lists_are_bounded(server: Server) -> None:
    for i in range(2 * MAX_NAMES):
        server.services.metrics._in_flight.enter(f"name{i:04}")
    labels, _ = info_of(await scrape(server))
    names = labels["waiting_lora_adapters"].split(",")
    assert names == [f"name{i:04}" for i in range(MAX_NAMES)]


async def test_what_other_routers_read_under_older_names(server: Server) -> None:
    samples = await scrape(server)
    assert gauge(samples, "gpu_cache_usage_perc") == gauge(samples, "kv_cache_usage_perc") == 0
    for name in ("prefix_cache_queries_total", "prefix_cache_hits_total"):
        assert gauge(samples, name) == gauge(samples, f"gpu_{name}") == 0
