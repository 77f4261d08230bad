"""Adapters that cannot be loaded or read: for how long requests for them are refused, what is
repaired, and what is told of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from remix_runtime.contracts import AdapterDefaults
from remix_runtime.errors import AdapterUnavailableError, CheckpointError
from server.live.adapters import LAST_RETRY_SECONDS, RETRY_SECONDS, LiveAdapters
from tests.unit.live.conftest import StoppedClock
from tests.unit.live.loads.conftest import (
    BUG,
    DAMAGED,
    DEFAULTS,
    OURS,
    TOO_LARGE,
    Engine,
    Folders,
    info_of,
    moments,
)


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
        with pytest.raises(AdapterUnavailableError, match=r"^adapter x .* a moment ago$") as raised:
            await adapters.defaults("x")
        assert raised.value.digest == "x"
        clock.now += expected
    with pytest.raises(AdapterUnavailableError, match=r"^adapter unpinned: ") as raised:
        await adapters.defaults("unpinned")
    assert raised.value.digest == "unpinned"
    assert folders.repairs == repairs * 2
