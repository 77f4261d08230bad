"""Pins on adapters: loaded once, held while anybody has pinned them, freed after that."""

from __future__ import annotations

import asyncio
import random

import pytest

from remix_runtime.errors import AdapterUnavailableError, CheckpointFormatError, EngineBusyError
from server.live import adapters as live_adapters
from server.live.adapters import LiveAdapters
from tests.unit.live.conftest import Shelf, WatchedEngine


async def test_many_calls_are_one_load(
    adapters: LiveAdapters, engine: WatchedEngine, shelf: Shelf
) -> None:
    digest = shelf.put("pirate")
    adapters.pin(digest)
    infos = await asyncio.gather(*(adapters.load(digest) for _ in range(20)))
    assert {info.digest for info in infos} == {digest}
    assert engine.loads == {digest: 1}
    assert adapters.load_seconds(digest) is not None


async def test_the_last_release_unloads(
    adapters: LiveAdapters, engine: WatchedEngine, shelf: Shelf
) -> None:
    digest = shelf.put("pirate")
    adapters.pin(digest)
    adapters.pin(digest)
    await adapters.load(digest)
    adapters.unpin(digest)
    await adapters.settle()
    assert engine.loaded == {digest}
    adapters.unpin(digest)
    await adapters.settle()
    assert engine.loaded == set()
    assert adapters.digests == set()


async def test_retained_again_at_once_it_stays(
    adapters: LiveAdapters, engine: WatchedEngine, shelf: Shelf
) -> None:
    digest = shelf.put("pirate")
    adapters.pin(digest)
    await adapters.load(digest)
    adapters.unpin(digest)
    adapters.pin(digest)
    await adapters.settle()
    assert engine.unloads == {}
    await adapters.load(digest)
    assert engine.loads == {digest: 1}


async def test_a_caller_that_goes_away_takes_no_load_from_the_others(
    adapters: LiveAdapters, engine: WatchedEngine, shelf: Shelf
) -> None:
    digest = shelf.put("pirate")
    engine.may_load.clear()
    adapters.pin(digest)
    first = asyncio.create_task(adapters.load(digest))
    second = asyncio.create_task(adapters.load(digest))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    engine.may_load.set()
    assert (await second).digest == digest
    assert engine.loads == {digest: 1}


async def test_nobody_left_when_the_load_ends(
    adapters: LiveAdapters, engine: WatchedEngine, shelf: Shelf
) -> None:
    digest = shelf.put("pirate")
    engine.may_load.clear()
    with adapters.pinned([digest]):
        loading = asyncio.create_task(adapters.load(digest))
        await asyncio.sleep(0)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    engine.may_load.set()
    await adapters.settle()
    assert engine.loaded == set()
    assert adapters.digests == set()


async def test_a_failed_load_is_tried_again_by_swaps_and_later_by_requests(
    adapters: LiveAdapters, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = shelf.put("pirate")
    shelf.lost.add(digest)
    adapters.pin(digest)
    with pytest.raises(AdapterUnavailableError, match="is lost"):
        await adapters.load_for_request(digest)
    shelf.lost.clear()
    with pytest.raises(AdapterUnavailableError, match="a moment ago"):
        await adapters.load_for_request(digest)
    monkeypatch.setattr(live_adapters, "RETRY_SECONDS", 0.0)
    await adapters.load_for_request(digest)

    other = shelf.put("haiku")
    shelf.lost.add(other)
    adapters.pin(other)
    with pytest.raises(CheckpointFormatError):
        await adapters.load(other)
    shelf.lost.clear()
    await adapters.load(other)


async def test_cold_requests_are_as_many_as_the_engine_takes(
    adapters: LiveAdapters, engine: WatchedEngine, shelf: Shelf
) -> None:
    cold, warm = shelf.put("pirate"), shelf.put("haiku")
    for digest in (cold, warm):
        adapters.pin(digest)
    await adapters.load(warm)
    engine.may_load.clear()
    waiting = [
        asyncio.create_task(adapters.load_for_request(cold))
        for _ in range(engine.model.max_requests)
    ]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError):
        await adapters.load_for_request(cold)
    await adapters.load_for_request(warm)  # others do not wait
    engine.may_load.set()
    await asyncio.gather(*waiting)


async def test_a_tenant_that_fills_the_room_of_cold_requests_is_refused_by_itself_only(
    adapters: LiveAdapters, engine: WatchedEngine, shelf: Shelf
) -> None:
    cold = shelf.put("pirate")
    adapters.pin(cold)
    engine.may_load.clear()
    waiting = [
        asyncio.create_task(adapters.load_for_request(cold, "loud"))
        for _ in range(engine.model.max_requests)
    ]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError, match="of your requests"):
        await adapters.load_for_request(cold, "loud")
    waiting += [
        asyncio.create_task(adapters.load_for_request(cold, "quiet"))
        for _ in range(engine.model.max_requests // 2)
    ]
    await asyncio.sleep(0)
    engine.may_load.set()
    await asyncio.gather(*waiting)
    assert engine.loads == {cold: 1}


@pytest.mark.parametrize("is_shared", [False, True])
async def test_tenants_take_turns_with_cold_adapters(
    adapters: LiveAdapters, engine: WatchedEngine, shelf: Shelf, is_shared: bool
) -> None:
    """Also where the quiet one wants what the loud one has asked for last."""
    digests = [shelf.put(f"loud-{i}") for i in range(12)]
    wanted = digests[-1] if is_shared else shelf.put("quiet")
    engine.may_load.clear()
    with adapters.pinned([*digests, wanted]):
        loud = [asyncio.create_task(adapters.load(digest, "loud")) for digest in digests]
        await asyncio.sleep(0)
        quiet = asyncio.create_task(adapters.load_for_request(wanted, "quiet"))
        for _ in range(5):
            await asyncio.sleep(0)
        engine.may_load.set()
        await asyncio.gather(*loud, quiet)
        assert list(engine.loads).index(wanted) <= live_adapters.LOADS_AT_ONCE + 1
        assert set(engine.loads.values()) == {1}


async def test_those_who_wait_for_repairs_hold_up_no_load(
    adapters: LiveAdapters, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = [shelf.put(f"damaged-{i}") for i in range(live_adapters.LOADS_AT_ONCE)]
    sound, go_on = shelf.put("sound"), asyncio.Event()

    async def repair(digest: str) -> bool:
        await go_on.wait()
        return False

    monkeypatch.setattr(shelf, "repair", repair)
    shelf.lost.update(damaged)
    waiting = []
    with adapters.pinned([*damaged, sound]):
        for _ in range(2):  # the first ones find the damage, the second ones its repair
            waiting += [asyncio.create_task(adapters.load(digest)) for digest in damaged]
            for _ in range(20):
                await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        try:
            assert (await asyncio.wait_for(adapters.load(sound), 60)).digest == sound
        finally:
            go_on.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in found} == {CheckpointFormatError}


async def test_what_nobody_waits_for_any_more_is_not_loaded(
    adapters: LiveAdapters, engine: WatchedEngine, shelf: Shelf
) -> None:
    digests = [shelf.put(f"adapter-{i}") for i in range(live_adapters.LOADS_AT_ONCE + 3)]
    engine.may_load.clear()
    with adapters.pinned(digests):
        loads = [asyncio.create_task(adapters.load(digest)) for digest in digests]
        for _ in range(5):
            await asyncio.sleep(0)
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
    engine.may_load.set()
    await adapters.settle()
    assert len(engine.loads) == live_adapters.LOADS_AT_ONCE
    assert engine.loaded == adapters.digests == set()


async def test_any_order_of_events_ends_with_what_is_referred_to(
    engine: WatchedEngine, adapters: LiveAdapters, shelf: Shelf
) -> None:
    """Tasks hold adapters for random times; none may find its adapter gone while it holds it."""
    digests = [shelf.put(f"adapter-{i}") for i in range(8)]
    choose = random.Random(20261125)
    for digest in digests[:2]:
        adapters.pin(digest)

    async def hold() -> None:
        for _ in range(30):
            digest = choose.choice(digests)
            with adapters.pinned([digest]):
                await adapters.load(digest)
                for _ in range(choose.randrange(4)):
                    assert digest in engine.loaded
                    await asyncio.sleep(0)
                assert digest in engine.loaded
            for _ in range(choose.randrange(6)):
                await asyncio.sleep(0)

    await asyncio.gather(*(hold() for _ in range(4)))
    await adapters.settle()
    assert engine.loaded == {d for d in digests[:2] if engine.loads[d]}
    assert adapters.digests == set(digests[:2])
    assert engine.unloads.total() > 10
