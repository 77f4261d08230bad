"""Adapters that cannot be loaded or read: for how long requests for them are refused, what is
repaired, and what is told of it. The engine and the folders do what a test says."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from remix_runtime.contracts import AdapterDefaults, AdapterInfo
from remix_runtime.errors import (
    AdapterUnavailableError,
    CapacityError,
    CheckpointError,
    EngineBusyError,
)
from server.live import adapters as live_adapters
from server.live.adapters import LAST_RETRY_SECONDS, LOADS_AT_ONCE, RETRY_SECONDS, LiveAdapters
from server.live.metrics import LiveMetrics
from tests.unit.live.conftest import StoppedClock

DEFAULTS = AdapterDefaults(temperature=0.5)
DAMAGED, TOO_LARGE = CheckpointError("it is damaged"), CapacityError("it is too large")
OURS, BUG = OSError("no descriptors are left"), ZeroDivisionError("a mistake of ours")


class Engine:
    """Loads in no time of its clock but `seconds`, fails with what `errors` has for a digest, and
    waits while a digest is `held`."""

    model = SimpleNamespace(max_requests=2 * LOADS_AT_ONCE)

    def __init__(self, clock: StoppedClock) -> None:
        self._clock = clock
        self.seconds = 0.0
        self.errors: dict[str, Exception] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.loads: Counter[str] = Counter()
        self.loaded: set[str] = set()

    async def load_adapter(self, folder: Path, digest: str) -> AdapterInfo:
        assert folder.name == digest
        await self._wait(digest)
        self.loads[digest] += 1
        self._clock.now += self.seconds
        if digest in self.errors:
            raise self.errors[digest]
        self.loaded.add(digest)
        return info_of(digest)

    async def unload_adapter(self, digest: str) -> None:
        await self._wait(digest)
        self.loaded.remove(digest)

    async def _wait(self, digest: str) -> None:
        if digest in self.held:
            await self.held[digest].wait()


class Folders:
    """`repaired`: what a repair finds, or the error that it ends with."""

    def __init__(self, root: Path, engine: Engine) -> None:
        self._root = root
        self._engine = engine
        self.repaired: bool | Exception = False
        self.repairs: list[str] = []
        self.may_repair = asyncio.Event()
        self.may_repair.set()
        self.error: Exception | None = None

    async def __call__(self, digest: str) -> Path:
        if self.error is not None:
            raise self.error
        return self._root / digest

    async def repair(self, digest: str) -> bool:
        self.repairs.append(digest)
        await self.may_repair.wait()
        if isinstance(self.repaired, Exception):
            raise self.repaired
        if self.repaired:
            del self._engine.errors[digest]
        return self.repaired


def info_of(digest: str) -> AdapterInfo:
    return AdapterInfo(
        digest=digest, num_layers=1, num_experts=2, top_k=1, r=1, num_bytes=1, defaults=DEFAULTS
    )


async def moments() -> None:
    """Lets tasks go on until they wait for something that only the test can bring about."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    clock = StoppedClock()
    monkeypatch.setattr(live_adapters, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def engine(clock: StoppedClock) -> Engine:
    return Engine(clock)


@pytest.fixture
def folders(tmp_path: Path, engine: Engine) -> Folders:
    return Folders(tmp_path, engine)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def adapters(engine: Engine, folders: Folders, registry: CollectorRegistry) -> LiveAdapters:
    adapters = LiveAdapters(engine, folders, LiveMetrics(registry))  # type: ignore[arg-type]
    adapters.pin("x")
    return adapters


async def refused(adapters: LiveAdapters) -> AdapterUnavailableError:
    """How a request for the adapter is refused, once what it began has ended."""
    with pytest.raises(AdapterUnavailableError) as raised:
        await adapters.load_for_request("x")
    await adapters.settle()
    assert raised.value.digest == "x"
    return raised.value


async def pause(adapters: LiveAdapters, engine: Engine) -> float:
    """Seconds for which requests are refused from now on, and no load is tried."""
    loads = engine.loads.total()
    error = await refused(adapters)
    assert str(error) == "adapter x could not be loaded a moment ago"
    assert engine.loads.total() == loads
    return error.retry_after


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (DAMAGED, [5, 10, 20, 40, 80, 160, 300, 300]),
        (TOO_LARGE, [5, 10, 20, 40, 80, 160, 300, 300]),
        (OURS, [5, 5, 5, 5]),  # not the adapter's fault, so it is back when we are
    ],
)
async def test_pauses_grow_where_the_adapter_is_at_fault(
    adapters: LiveAdapters,
    engine: Engine,
    clock: StoppedClock,
    registry: CollectorRegistry,
    error: Exception,
    pauses: list[float],
) -> None:
    def unavailable() -> float | None:
        assert adapters.num_unavailable == registry.get_sample_value("remix_adapters_unavailable")
        return adapters.num_unavailable

    assert unavailable() == 0
    engine.errors["x"] = error
    for expected in pauses:
        told = await refused(adapters)
        assert str(told) == f"adapter x: {error}"
        assert await pause(adapters, engine) == expected
        clock.now += expected - 0.5
        assert await pause(adapters, engine) == 0.5
        clock.now += 0.5
        assert unavailable() == 1, "until it is loaded"
    assert engine.loads["x"] == len(pauses)
    del engine.errors["x"]
    await adapters.load_for_request("x")
    assert unavailable() == 0


async def test_a_mistake_of_ours_is_raised_as_it_is(adapters: LiveAdapters, engine: Engine) -> None:
    engine.errors["x"] = BUG
    with pytest.raises(ZeroDivisionError):
        await adapters.load_for_request("x")
    assert await pause(adapters, engine) == RETRY_SECONDS


@pytest.mark.parametrize(("later", "expected"), [(600, 10), (600.5, 5)])
async def test_a_failure_long_after_another_is_the_first(
    adapters: LiveAdapters, engine: Engine, clock: StoppedClock, later: float, expected: float
) -> None:
    assert later >= 2 * LAST_RETRY_SECONDS
    engine.errors["x"] = DAMAGED
    await refused(adapters)
    clock.now += later
    await refused(adapters)
    assert await pause(adapters, engine) == expected


async def test_failures_in_one_pause_are_one(
    adapters: LiveAdapters, engine: Engine, clock: StoppedClock
) -> None:
    engine.errors["x"] = DAMAGED
    await refused(adapters)
    clock.now += RETRY_SECONDS - 0.5
    with pytest.raises(CheckpointError):
        await adapters.load("x")  # a swap tries whenever it is asked to
    assert await pause(adapters, engine) == 0.5
    clock.now += 0.5
    await refused(adapters)
    assert await pause(adapters, engine) == 2 * RETRY_SECONDS


async def test_a_load_ends_the_pause_and_forgets_the_failures(
    adapters: LiveAdapters, engine: Engine
) -> None:
    engine.errors["x"] = DAMAGED
    await refused(adapters)
    del engine.errors["x"]
    assert await adapters.load("x") == info_of("x")
    await adapters.load_for_request("x")
    assert adapters.num_unavailable == 0
    adapters.unreadable("x")
    await adapters.settle()
    assert await pause(adapters, engine) == RETRY_SECONDS


async def test_a_damaged_folder_is_repaired_and_loaded_again(
    adapters: LiveAdapters, engine: Engine, folders: Folders, registry: CollectorRegistry
) -> None:
    engine.errors["x"], folders.repaired = DAMAGED, True
    assert await adapters.load("x") == info_of("x")
    assert (folders.repairs, engine.loads) == (["x"], {"x": 2})
    assert outcomes(registry) == {"repaired": 1, "failed": 0}
    assert adapters.num_unavailable == 0


async def test_a_folder_that_is_not_damaged_is_left_and_the_load_has_failed(
    adapters: LiveAdapters, engine: Engine, folders: Folders, registry: CollectorRegistry
) -> None:
    engine.errors["x"] = DAMAGED
    with pytest.raises(CheckpointError, match="it is damaged"):
        await adapters.load("x")
    assert (folders.repairs, engine.loads) == (["x"], {"x": 1})
    assert outcomes(registry) == {"repaired": 0, "failed": 0}


async def test_a_repair_that_fails_is_counted_and_makes_the_pause_no_longer(
    adapters: LiveAdapters, engine: Engine, folders: Folders, registry: CollectorRegistry
) -> None:
    engine.errors["x"], folders.repaired = DAMAGED, OURS
    with pytest.raises(OSError, match="no descriptors"):
        await adapters.load("x")
    assert outcomes(registry) == {"repaired": 0, "failed": 1}
    assert await pause(adapters, engine) == RETRY_SECONDS


async def test_a_repair_that_fails_after_the_pause_counts_as_a_failure(
    adapters: LiveAdapters, engine: Engine, folders: Folders, clock: StoppedClock
) -> None:
    engine.errors["x"], folders.repaired = DAMAGED, OURS
    folders.may_repair.clear()
    loading = asyncio.create_task(adapters.load("x"))
    await moments()
    assert folders.repairs == ["x"]
    clock.now += RETRY_SECONDS
    folders.may_repair.set()
    with pytest.raises(OSError, match="no descriptors"):
        await loading
    assert await pause(adapters, engine) == 2 * RETRY_SECONDS


def outcomes(registry: CollectorRegistry) -> dict[str, float | None]:
    name = "remix_adapter_repairs_total"
    return {
        outcome: registry.get_sample_value(name, {"outcome": outcome})
        for outcome in ("repaired", "failed")
    }


@pytest.mark.parametrize("error", [TOO_LARGE, OURS])
async def test_what_is_no_damage_is_not_repaired(
    adapters: LiveAdapters, engine: Engine, folders: Folders, error: Exception
) -> None:
    engine.errors["x"] = error
    await refused(adapters)
    assert folders.repairs == []


async def test_while_it_is_repaired_requests_are_refused_at_once(
    adapters: LiveAdapters, engine: Engine, folders: Folders, clock: StoppedClock
) -> None:
    await adapters.load("x")
    adapters.unreadable("unknown")
    adapters.pin("cold")
    adapters.unreadable("cold")
    assert folders.repairs == []
    folders.may_repair.clear()
    adapters.unreadable("x")
    await moments()
    clock.now += 2 * RETRY_SECONDS
    for _ in range(3):
        adapters.unreadable("x")
        with pytest.raises(AdapterUnavailableError) as raised:
            await adapters.load_for_request("x")
        assert str(raised.value) == "adapter x is being repaired"
        assert (raised.value.digest, raised.value.retry_after) == ("x", RETRY_SECONDS)
        assert adapters.num_unavailable == 1
    folders.may_repair.set()
    await adapters.settle()
    assert folders.repairs == ["x"]
    await adapters.load_for_request("x")  # the engine has it
    assert (engine.loads["x"], adapters.num_unavailable) == (1, 0)


async def test_what_could_not_be_read_is_refused_for_a_pause_that_grows(
    adapters: LiveAdapters, engine: Engine, folders: Folders, clock: StoppedClock
) -> None:
    await adapters.load("x")
    for number, expected in enumerate((5, 10, 20), start=1):
        adapters.unreadable("x")
        await adapters.settle()
        assert await pause(adapters, engine) == expected
        adapters.unreadable("x")  # another request tells of the same
        assert await pause(adapters, engine) == expected
        clock.now += expected - 0.5
        assert adapters.num_unavailable == 1
        clock.now += 0.5
        assert adapters.num_unavailable == 0
        await adapters.load_for_request("x")
        assert len(folders.repairs) == number
    assert engine.loads["x"] == 1


@pytest.mark.parametrize("is_loaded", [True, False])
async def test_defaults_are_those_of_the_engine_or_of_the_folder(
    adapters: LiveAdapters, tmp_path: Path, is_loaded: bool
) -> None:
    for name in ("x", "unpinned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "defaults.json").write_text('{"temperature": 0.25}')
    if is_loaded:
        await adapters.load("x")
        assert await adapters.defaults("x") == DEFAULTS
    else:
        assert await adapters.defaults("x") == AdapterDefaults(temperature=0.25)
    assert await adapters.defaults("unpinned") == AdapterDefaults(temperature=0.25)


@pytest.mark.parametrize(("error", "repairs"), [(None, ["x"]), (TOO_LARGE, []), (OURS, [])])
async def test_defaults_that_cannot_be_read_are_a_failure_of_the_adapter(
    adapters: LiveAdapters,
    engine: Engine,
    folders: Folders,
    clock: StoppedClock,
    error: Exception | None,
    repairs: list[str],
) -> None:
    folders.error = error  # None: there is no such folder
    for number, expected in enumerate((5, 10), start=1):
        with pytest.raises(AdapterUnavailableError, match=r"^adapter x: ") as raised:
            await adapters.defaults("x")
        await adapters.settle()
        assert raised.value.digest == "x"
        assert folders.repairs == repairs * number
        assert await pause(adapters, engine) == expected
        with pytest.raises(AdapterUnavailableError, match="a moment ago"):
            await adapters.defaults("x")
        clock.now += expected
    with pytest.raises(AdapterUnavailableError, match=r"^adapter unpinned: ") as raised:
        await adapters.defaults("unpinned")
    assert raised.value.digest == "unpinned"
    assert folders.repairs == repairs * 2


async def test_what_a_load_took_is_told(
    adapters: LiveAdapters, engine: Engine, registry: CollectorRegistry
) -> None:
    engine.seconds = 3.0
    assert adapters.load_seconds("x") is adapters.load_seconds("unknown") is None
    await adapters.load("x")
    assert adapters.load_seconds("x") == 3
    assert registry.get_sample_value("remix_adapter_load_seconds_sum") == 3


async def test_pins_and_what_is_loaded(adapters: LiveAdapters) -> None:
    assert (adapters.pins("x"), adapters.pins("unknown")) == (1, 0)
    adapters.pin("x")
    assert adapters.pins("x") == 2
    assert adapters.loaded([])
    await adapters.load("x")
    adapters.pin("cold")
    assert adapters.loaded(["x"])
    assert not adapters.loaded(["x", "cold"])
    assert not adapters.loaded(["x", "unknown"])
    adapters.unpin("cold")
    with pytest.raises(AssertionError, match="unpinned more often"):
        adapters.unpin("cold")
    await adapters.settle()


async def test_what_the_engine_has_already_is_not_loaded(
    adapters: LiveAdapters, engine: Engine
) -> None:
    adapters.adopt(info_of("x"))
    adapters.adopt(info_of("given"))
    assert (adapters.pins("x"), adapters.pins("given")) == (1, 0)
    assert await adapters.load("given") == info_of("given")
    await adapters.load_for_request("x")
    assert engine.loads == {}
    assert adapters.digests == {"x", "given"}


async def test_pinned_again_while_it_is_unloaded_it_is_loaded_again(
    adapters: LiveAdapters, engine: Engine
) -> None:
    await adapters.load("x")
    engine.held["x"] = asyncio.Event()
    adapters.unpin("x")
    await moments()
    adapters.pin("x")
    loading = asyncio.create_task(adapters.load("x"))
    await asyncio.sleep(0)
    engine.held["x"].set()
    assert await loading == info_of("x")
    await adapters.settle()
    assert (engine.loads["x"], engine.loaded, adapters.pins("x")) == (2, {"x"}, 1)


async def test_many_calls_take_one_turn(adapters: LiveAdapters, engine: Engine) -> None:
    """Those who wait for one adapter leave the other turns to those who want another."""
    engine.held["x"] = asyncio.Event()
    waiting = [asyncio.create_task(adapters.load("x", "a")) for _ in range(2 * LOADS_AT_ONCE)]
    await moments()
    with adapters.pinned(["y"]):
        assert await asyncio.wait_for(adapters.load("y", "a"), 20) == info_of("y")
        engine.held["x"].set()
        assert await asyncio.gather(*waiting) == [info_of("x")] * len(waiting)
    await adapters.settle()
    assert engine.loads == {"x": 1, "y": 1}


@pytest.mark.parametrize("kind", ["load", "load_for_request"])
async def test_tenants_take_turns_whatever_they_load_for(
    adapters: LiveAdapters, engine: Engine, kind: str
) -> None:
    digests = [f"loud-{i}" for i in range(2 * LOADS_AT_ONCE)]
    load = getattr(adapters, kind)
    with adapters.pinned([*digests, "quiet"]):
        engine.held = {digest: asyncio.Event() for digest in digests[:LOADS_AT_ONCE]}
        loads = [asyncio.create_task(load(digest, "loud")) for digest in digests]
        await moments()
        loads.append(asyncio.create_task(load("quiet", "quiet")))
        await moments()
        for event in engine.held.values():
            event.set()
        await asyncio.gather(*loads)
    await adapters.settle()
    assert list(engine.loads).index("quiet") <= LOADS_AT_ONCE


async def test_requests_that_wait_are_told_how_many_they_are(
    adapters: LiveAdapters, engine: Engine
) -> None:
    engine.held["x"] = asyncio.Event()
    waiting = [asyncio.create_task(adapters.load_for_request("x", "a")) for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError) as raised:
        await adapters.load_for_request("x", "a")
    assert str(raised.value) == "8 of your requests wait for adapters that are not loaded yet"
    engine.held["x"].set()
    await asyncio.gather(*waiting)


async def test_a_load_that_fails_when_nobody_waits_any_more_is_logged(
    adapters: LiveAdapters, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.held["x"], engine.errors["x"] = asyncio.Event(), TOO_LARGE
    loading = asyncio.create_task(adapters.load("x"))
    await moments()
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    with caplog.at_level(logging.INFO, "server.live.adapters"):
        engine.held["x"].set()
        await adapters.settle()
    assert [record.message for record in caplog.records] == [
        "loading, repairing or unloading an adapter failed: it is too large"
    ]
