"""The swap: everything good is live at once, anything bad leaves the old set serving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from remix_runtime.contracts import AdapterInfo
from remix_runtime.watch import Watch
from server.live import swap as live_swap
from server.live.adapters import LiveAdapters
from server.live.follower import Follower
from server.live.metrics import LiveMetrics
from server.live.sets import LiveSets
from server.live.swap import BadSetError, Swaps
from server.tenancy.directory import Directory
from server.tenancy.errors import (
    AdapterNotFoundError,
    InvalidValueError,
    StaleRevisionError,
    UnknownAdapterError,
    UnknownRevisionError,
    UnknownTenantError,
)
from server.tenancy.records import AdapterRecord
from tests.unit.live.conftest import Shelf, StoppedClock, WatchedEngine
from tests.unit.server.harness import eventually


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Directory]:
    directory = await Directory.open(f"sqlite:///{tmp_path}/remix.db")
    await directory.create_tenant("acme", actor="test")
    yield directory
    await directory.close()


@pytest.fixture
def sets(adapters: LiveAdapters) -> LiveSets:
    return LiveSets("base", adapters)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def swaps(
    directory: Directory, adapters: LiveAdapters, sets: LiveSets, registry: CollectorRegistry
) -> Swaps:
    metrics = LiveMetrics(registry)
    follower = Follower(directory, adapters, sets, metrics, Watch(), poll_seconds=60)
    return Swaps(directory, adapters, follower, metrics, base_name="base")


@pytest.fixture
async def digests(directory: Directory, shelf: Shelf) -> list[str]:
    digests = [shelf.put(f"adapter-{i}") for i in range(4)]
    for digest in digests:
        record = AdapterRecord(digest=digest, source="/somewhere", num_bytes=1)
        await directory.add_adapter(record, actor="test")
    return digests


def outcomes(registry: CollectorRegistry) -> dict[str, float]:
    found = {
        outcome: registry.get_sample_value("remix_set_swaps_total", {"outcome": outcome})
        for outcome in ("applied", "unchanged", "stale", "refused", "failed")
    }
    return {outcome: count for outcome, count in found.items() if count}


async def test_put_and_rollback(
    swaps: Swaps,
    sets: LiveSets,
    directory: Directory,
    adapters: LiveAdapters,
    engine: WatchedEngine,
    digests: list[str],
) -> None:
    a, b, c, _ = digests
    first = await swaps.put("acme", {"x": a, "y": b}, expected=0, actor="test")
    assert (first.added, first.changed, first.removed) == (("x", "y"), (), ())
    assert sets.live("acme").adapters == {"x": a, "y": b}
    second = await swaps.put("acme", {"y": c, "z": b}, expected=1, actor="test")
    assert (second.added, second.changed, second.removed) == (("z",), ("y",), ("x",))
    await adapters.settle()
    assert engine.loaded == {b, c}
    assert engine.loads[b] == 1  # what stays is not loaded again

    back = await swaps.rollback("acme", 1, expected=2, actor="test")
    assert back.after.revision == 3
    assert back.after.rolled_back_from == 1
    assert sets.live("acme").adapters == {"x": a, "y": b} == back.after.adapters
    assert (await directory.current_set("acme")).revision == 3
    await swaps.rollback("acme", 0, expected=3, actor="test")
    await adapters.settle()
    assert sets.live("acme").adapters == {}
    assert engine.loaded == set()


async def test_a_bad_adapter_leaves_everything_as_it_was(
    swaps: Swaps,
    sets: LiveSets,
    directory: Directory,
    adapters: LiveAdapters,
    engine: WatchedEngine,
    shelf: Shelf,
    registry: CollectorRegistry,
    digests: list[str],
) -> None:
    a, b, bad, good = digests
    await swaps.put("acme", {"x": a, "y": b}, expected=None, actor="test")
    shelf.lost.add(bad)
    wanted = {"x": bad, "y": good, "w": bad, "base": a}
    with pytest.raises(BadSetError) as raised:
        await swaps.put("acme", wanted, expected=None, actor="test")
    assert set(raised.value.reasons) == {"x", "w", "base"}
    assert "is lost" in raised.value.reasons["x"]
    assert "base model" in raised.value.reasons["base"]
    await adapters.settle()
    assert engine.loaded == {a, b}
    assert sets.live("acme").adapters == {"x": a, "y": b}
    assert (await directory.current_set("acme")).revision == 1
    assert outcomes(registry) == {"applied": 1, "refused": 1}


async def test_a_dry_run_says_what_would_be_and_leaves_nothing(
    swaps: Swaps,
    sets: LiveSets,
    directory: Directory,
    adapters: LiveAdapters,
    engine: WatchedEngine,
    shelf: Shelf,
    registry: CollectorRegistry,
    digests: list[str],
) -> None:
    a, b, bad, _ = digests
    result = await swaps.put("acme", {"x": a, "y": b}, expected=0, actor="test", dry_run=True)
    assert (result.added, result.after.revision) == (("x", "y"), 0)
    await adapters.settle()
    assert engine.loads == {a: 1, b: 1}  # they were tried
    assert engine.loaded == set()
    assert sets.live("acme").revision == (await directory.current_set("acme")).revision == 0
    shelf.lost.add(bad)
    with pytest.raises(BadSetError):
        await swaps.put("acme", {"x": bad}, expected=0, actor="test", dry_run=True)
    with pytest.raises(StaleRevisionError):
        await swaps.put("acme", {"x": a}, expected=5, actor="test", dry_run=True)
    assert "applied" not in outcomes(registry)


async def test_one_of_many_at_once_wins(
    swaps: Swaps, sets: LiveSets, directory: Directory, engine: WatchedEngine, digests: list[str]
) -> None:
    engine.may_load.clear()  # all compare before any writes
    puts = [
        asyncio.create_task(swaps.put("acme", {"x": digest}, expected=0, actor="test"))
        for digest in digests
    ]
    await asyncio.sleep(0.05)
    engine.may_load.set()
    results = await asyncio.gather(*puts, return_exceptions=True)
    losers = [r for r in results if isinstance(r, StaleRevisionError)]
    (winner,) = [r for r in results if not isinstance(r, BaseException)]
    assert len(losers) == 3
    assert sets.live("acme").adapters == winner.after.adapters
    assert (await directory.current_set("acme")).adapters == winner.after.adapters


async def test_repeated_after_a_lost_answer_it_succeeds_and_writes_nothing(
    swaps: Swaps, directory: Directory, registry: CollectorRegistry, digests: list[str]
) -> None:
    for _ in range(3):
        result = await swaps.put("acme", {"x": digests[0]}, expected=0, actor="test")
        assert result.after.revision == 1
    assert len(await directory.revisions("acme", limit=10)) == 1
    assert outcomes(registry) == {"applied": 1, "unchanged": 2}


async def test_refused_before_anything_is_loaded(
    swaps: Swaps, engine: WatchedEngine, digests: list[str], registry: CollectorRegistry
) -> None:
    for call, error in (
        (swaps.put("acme", {"bad name": digests[0]}, expected=None, actor="t"), InvalidValueError),
        (swaps.put("acme", {"x": "not-a-digest"}, expected=None, actor="t"), InvalidValueError),
        (swaps.put("nobody", {"x": digests[0]}, expected=None, actor="t"), UnknownTenantError),
        (swaps.put("acme", {"x": digests[0]}, expected=7, actor="t"), StaleRevisionError),
        (swaps.rollback("acme", 9, expected=None, actor="t"), UnknownRevisionError),
    ):
        with pytest.raises(error):
            await call
    assert engine.loads == {}


async def test_an_adapter_that_is_deleted_while_it_loads_is_refused(
    swaps: Swaps,
    sets: LiveSets,
    directory: Directory,
    adapters: LiveAdapters,
    engine: WatchedEngine,
    digests: list[str],
) -> None:
    engine.may_load.clear()
    putting = asyncio.create_task(swaps.put("acme", {"x": digests[0]}, expected=None, actor="test"))
    await asyncio.sleep(0.05)
    await directory.delete_adapter(digests[0], actor="test")
    engine.may_load.set()
    with pytest.raises(UnknownAdapterError):
        await putting
    await adapters.settle()
    assert engine.loaded == set()
    assert sets.live("acme").adapters == {}


async def test_an_adapter_that_nobody_imported_is_refused_and_not_loaded(
    swaps: Swaps, engine: WatchedEngine, shelf: Shelf, digests: list[str]
) -> None:
    unknown = shelf.put("never imported")
    wanted = {"x": unknown, "y": digests[0], "z": unknown}
    with pytest.raises(BadSetError) as raised:
        await swaps.put("acme", wanted, expected=None, actor="test")
    told = str(AdapterNotFoundError(unknown))
    assert raised.value.reasons == {"x": told, "z": told}
    assert engine.loads == {digests[0]: 1}, "the others are tried, so that all reasons are told"


@pytest.mark.parametrize(("number", "more"), [(4, ""), (5, ""), (6, "; and 1 more")])
def test_a_refusal_names_five_adapters_and_counts_the_others(number: int, more: str) -> None:
    error = BadSetError({f"a{i}": f"r{i}" for i in range(number)})
    some = "; ".join(f"a{i}: r{i}" for i in range(min(number, 5)))
    assert str(error) == f"the set was not changed: {some}{more}"
    assert len(error.reasons) == number


async def test_a_stale_swap_is_told_what_there_is_and_loads_nothing(
    swaps: Swaps, engine: WatchedEngine, registry: CollectorRegistry, digests: list[str]
) -> None:
    a, b, _, _ = digests
    await swaps.put("acme", {"x": a}, expected=0, actor="test")
    await swaps.put("acme", {"x": b}, expected=1, actor="test")
    engine.loads.clear()
    for call in (
        swaps.put("acme", {"x": a}, expected=1, actor="test"),
        swaps.put("acme", {"x": a}, expected=3, actor="test", dry_run=True),
        swaps.rollback("acme", 1, expected=1, actor="test"),
    ):
        with pytest.raises(StaleRevisionError, match="acme") as raised:
            await call
        assert raised.value.found == 2
        assert raised.value.expected in (1, 3)
        assert str(raised.value.expected) in str(raised.value)
    assert engine.loads == {}
    assert outcomes(registry) == {"applied": 2, "stale": 3}


async def test_a_rollback_that_is_overtaken_while_it_loads_is_stale(
    swaps: Swaps,
    sets: LiveSets,
    adapters: LiveAdapters,
    engine: WatchedEngine,
    digests: list[str],
) -> None:
    a, b, _, _ = digests
    await swaps.put("acme", {"x": a}, expected=0, actor="test")
    await swaps.put("acme", {"x": b}, expected=1, actor="test")
    await adapters.settle()
    engine.may_load.clear()
    back = asyncio.create_task(swaps.rollback("acme", 1, expected=2, actor="test"))
    await eventually(lambda: adapters.pins(a) == 1)
    await swaps.put("acme", {}, expected=2, actor="test")
    engine.may_load.set()
    with pytest.raises(StaleRevisionError):
        await back
    assert (sets.live("acme").revision, sets.live("acme").adapters) == (3, {})


async def test_a_failure_of_the_server_changes_nothing_and_is_counted(
    swaps: Swaps,
    sets: LiveSets,
    adapters: LiveAdapters,
    engine: WatchedEngine,
    registry: CollectorRegistry,
    digests: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> AdapterInfo:
        raise ZeroDivisionError

    a, b, _, _ = digests
    await swaps.put("acme", {"x": a}, expected=None, actor="test")
    monkeypatch.setattr(engine, "load_adapter", fail)
    with pytest.raises(ZeroDivisionError):
        await swaps.put("acme", {"x": a, "y": b}, expected=None, actor="test")
    await adapters.settle()
    assert (sets.live("acme").adapters, engine.loaded) == ({"x": a}, {a})
    assert adapters.digests == {a}
    assert outcomes(registry) == {"applied": 1, "failed": 1}


async def test_what_a_swap_took_and_who_did_it(
    swaps: Swaps,
    adapters: LiveAdapters,
    engine: WatchedEngine,
    registry: CollectorRegistry,
    digests: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = StoppedClock()
    monkeypatch.setattr(live_swap, "time", SimpleNamespace(monotonic=clock))
    tenants = set()
    load = adapters.load

    async def slow(digest: str, tenant: str = "") -> AdapterInfo:
        clock.now += 2
        tenants.add(tenant)
        return await load(digest, tenant)

    monkeypatch.setattr(adapters, "load", slow)
    dry = await swaps.put("acme", {"x": digests[0]}, expected=0, actor="me", dry_run=True)
    assert (dry.dry_run, dry.seconds) == (True, 2)
    assert (dry.before.adapters, dry.after.adapters) == ({}, {"x": digests[0]})
    assert dry.before.revision == dry.after.revision == 0
    wet = await swaps.put("acme", {"x": digests[0], "y": digests[1]}, expected=0, actor="me")
    assert (wet.dry_run, wet.seconds) == (False, 4)
    assert (wet.before.revision, wet.after.revision, wet.after.actor) == (0, 1, "me")
    back = await swaps.rollback("acme", 0, expected=1, actor="you")
    assert (back.dry_run, back.seconds, back.after.actor) == (False, 0, "you")
    assert registry.get_sample_value("remix_set_swap_seconds_sum") == 6
    assert tenants == {"acme"}
