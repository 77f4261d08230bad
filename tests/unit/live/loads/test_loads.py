"""Loads of adapters: one for all who wait, in turns, and what is told of them."""

from __future__ import annotations

import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry

from remix_runtime.errors import EngineBusyError
from server.live.adapters import LOADS_AT_ONCE, LiveAdapters
from tests.unit.live.loads.conftest import TOO_LARGE, Engine, info_of, moments


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
    # It starts level with the loud one, which has waited longer.
    assert list(engine.loads).index("quiet") <= LOADS_AT_ONCE + 1


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
