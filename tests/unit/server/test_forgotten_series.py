"""Series of adapters and tenants that are gone: kept for a while, then removed, and their places
given to others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from remix_runtime.engines.fake import FakeEngine
from server import metrics as module
from server.live.sets import LiveSet
from server.metrics import FORGET_SECONDS, OTHER, Metrics

FIRST = {"pirate": "0" * 64, "haiku": "1" * 64}


class Told:
    """Metrics with room for four pairs, of sets that the test changes, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.sets = {"acme": LiveSet(1, FIRST)}
        monkeypatch.setattr(module, "monotonic", lambda: self.now)
        sets = SimpleNamespace(all=self.sets, base_name="base", canaries=SimpleNamespace(all=[]))
        routing = SimpleNamespace(latest={})
        self.metrics = Metrics(CollectorRegistry(), FakeEngine(), sets, routing, max_series=4)

    def serve(self, tenant: str, name: str) -> None:
        self.metrics.count_request(
            tenant=tenant,
            name=name,
            endpoint="chat",
            status="500",
            error="internal_error",
            seconds=1.0,
        )
        self.metrics.watch(tenant, name, prompt_tokens=1)

    @property
    def pairs(self) -> set[tuple[str, str]]:
        found = set()
        for family in self.metrics._registry.collect():
            for sample in family.samples:
                if "adapter" in sample.labels and family.name != "remix_adapter_info":
                    found.add((sample.labels["tenant"], sample.labels["adapter"]))
        return found

    async def scrape(self) -> set[tuple[str, str]]:
        await self.metrics.text()
        return self.pairs


@pytest.fixture
async def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


async def test_what_left_the_sets_is_told_for_a_while_and_then_forgotten(told: Told) -> None:
    told.serve("acme", "pirate")
    all_of_it = {("acme", name) for name in ("base", "pirate", "haiku")}
    assert (await told.scrape()) == all_of_it
    told.sets["acme"] = LiveSet(2, {"haiku": "1" * 64})
    told.now += 100
    assert (await told.scrape()) == all_of_it
    told.now += FORGET_SECONDS - 1
    assert (await told.scrape()) == all_of_it
    told.now += 61
    assert (await told.scrape()) == {("acme", "base"), ("acme", "haiku")}
    told.now += 10 * FORGET_SECONDS
    assert (await told.scrape()) == {("acme", "base"), ("acme", "haiku")}
    told.serve("acme", OTHER)
    assert ("acme", OTHER) in (await told.scrape())
    del told.sets["acme"]
    for _ in range(2):
        told.now += FORGET_SECONDS + 1
        await told.metrics.text()
    assert told.pairs == set()


async def test_what_comes_back_in_time_is_not_forgotten(told: Told) -> None:
    told.serve("acme", "pirate")
    told.sets["acme"] = LiveSet(2, {})
    told.now += FORGET_SECONDS / 2
    await told.metrics.text()
    told.sets["acme"] = LiveSet(3, FIRST)
    told.now += FORGET_SECONDS
    await told.metrics.text()
    told.sets["acme"] = LiveSet(4, {})
    told.now += FORGET_SECONDS / 2
    assert ("acme", "pirate") in (await told.scrape())


async def test_places_of_the_forgotten_go_to_others_without_a_scrape(told: Told) -> None:
    await told.scrape()
    told.sets["acme"] = LiveSet(2, {})
    told.sets["beta"] = LiveSet(1, {"x": "2" * 64, "y": "3" * 64})
    told.serve("beta", "x")
    told.now += 61
    told.serve("beta", "y")  # the table is full
    assert ("beta", "y") not in told.pairs
    assert (OTHER, OTHER) in told.pairs
    told.now += FORGET_SECONDS + 61
    told.serve("beta", "y")
    assert ("beta", "y") in told.pairs
    assert ("acme", "pirate") not in told.pairs
