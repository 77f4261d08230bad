"""What every engine must do with adapters: load, unload, hold more than fit in memory."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.base.fingerprint import fingerprint
from remix_runtime.contracts import Engine, TokenEvent
from remix_runtime.engine_state import AdapterTier
from remix_runtime.errors import (
    AdapterNotLoadedError,
    AdapterUnavailableError,
    CheckpointError,
    EngineDeadError,
)
from tests.contract.conftest import HOST_ADAPTERS, PROMPT, Setup
from tests.engines import complete, complete_all, request


async def test_an_adapter_that_is_not_loaded_is_refused(setup: Setup) -> None:
    with pytest.raises(AdapterNotLoadedError):
        await complete(setup.engine, request(PROMPT, "0" * 64))
    assert (await complete(setup.engine, request(PROMPT))).token_ids


async def test_loading_is_idempotent_and_a_bad_folder_leaves_nothing(setup: Setup) -> None:
    first = await setup.engine.load_adapter(setup.adapters[0])
    assert await setup.engine.load_adapter(setup.adapters[0]) == first
    with pytest.raises(CheckpointError):
        await setup.engine.load_adapter(setup.broken)
    assert (await complete(setup.engine, request(PROMPT, first.digest))).token_ids


async def test_training_s_load_and_the_base_s_fingerprint_are_told(setup: Setup) -> None:
    infos = [await setup.engine.load_adapter(folder) for folder in setup.adapters[:2]]
    if setup.base is None:
        assert setup.engine.model.fingerprint is None
        return
    assert setup.engine.model.fingerprint == fingerprint(setup.base)
    expected = [read_checkpoint(folder).trained_load for folder in setup.adapters[:2]]
    assert [info.trained_load for info in infos] == expected
    assert [load is None for load in expected] == [True, False]


async def test_unloading_waits_for_the_last_request(setup: Setup) -> None:
    digest = (await setup.engine.load_adapter(setup.adapters[0])).digest
    expected = (await complete(setup.engine, request(PROMPT, digest, max_tokens=40))).token_ids
    running = setup.engine.generate(request(PROMPT, digest, max_tokens=40))
    tokens = list((await anext(running)).token_ids)
    unload = asyncio.create_task(setup.engine.unload_adapter(digest))
    await asyncio.sleep(0)
    with pytest.raises(AdapterNotLoadedError):
        await complete(setup.engine, request(PROMPT, digest))
    assert not unload.done()
    async for event in running:
        tokens += event.token_ids
    await asyncio.wait_for(unload, 120)
    assert tokens == expected
    assert setup.engine.stats().adapter_slots_used == 0
    await setup.engine.unload_adapter(digest)
    await setup.engine.load_adapter(setup.adapters[0])
    assert (await complete(setup.engine, request(PROMPT, digest, max_tokens=40))).token_ids


async def unloading_beside_a_request(
    setup: Setup, *, max_tokens: int
) -> tuple[str, AsyncIterator[TokenEvent], asyncio.Task[None]]:
    """An adapter's digest, a request that runs on it, and its unload, which waits for that."""
    digest = (await setup.engine.load_adapter(setup.adapters[0])).digest
    running = setup.engine.generate(request(PROMPT, digest, max_tokens=max_tokens, ignore_eos=True))
    await anext(running)
    unload = asyncio.create_task(setup.engine.unload_adapter(digest))
    await asyncio.sleep(0)
    return digest, running, unload


async def test_an_adapter_loaded_again_while_it_unloads_stays(setup: Setup) -> None:
    digest, running, unload = await unloading_beside_a_request(setup, max_tokens=40)
    # Several at once, some of them when the last request has just ended.
    loads = [asyncio.create_task(setup.engine.load_adapter(setup.adapters[0])) for _ in range(3)]
    async for _ in running:
        pass
    loads.append(asyncio.create_task(setup.engine.load_adapter(setup.adapters[0])))
    infos = await asyncio.wait_for(asyncio.gather(*loads), 120)
    await asyncio.wait_for(unload, 120)
    assert {info.digest for info in infos} == {digest}
    assert (await complete(setup.engine, request(PROMPT, digest))).token_ids


async def test_stopping_while_an_unload_waits_leaves_nobody_waiting(setup: Setup) -> None:
    _, _running, unload = await unloading_beside_a_request(setup, max_tokens=200)
    await asyncio.wait_for(setup.engine.stop(), 120)
    with contextlib.suppress(EngineDeadError):
        await asyncio.wait_for(unload, 120)


async def test_the_activations_of_experts_are_counted_from_load_to_unload(setup: Setup) -> None:
    """Below a page of tokens, so that nothing of them is cached."""
    engine = setup.engine
    infos = [await engine.load_adapter(folder) for folder in setup.adapters]  # more than fit
    computed = dict.fromkeys((info.digest for info in infos), 0)
    for _ in range(2):
        items = [request(PROMPT, info.digest, max_tokens=4, ignore_eos=True) for info in infos]
        await complete_all(engine, [*items, request(PROMPT)])
        for info in infos:
            computed[info.digest] += len(PROMPT) + 4 - 1  # the last token drawn is not computed
            load = engine.expert_load(info.digest)
            if setup.is_exact:
                assert len(load) == info.num_layers
            for counts in load.values():
                assert len(counts) == info.num_experts
                all_counts = info.top_k * computed[info.digest]
                assert sum(counts) == all_counts if setup.is_exact else sum(counts) <= all_counts
    gone, kept = infos[0].digest, infos[1].digest
    before = engine.expert_load(kept)
    await engine.unload_adapter(gone)
    assert engine.expert_load(gone) == engine.expert_load("0" * 64) == {}
    assert engine.expert_load(kept) == before
    await engine.load_adapter(setup.adapters[0])
    assert not any(sum(counts) for counts in engine.expert_load(gone).values())


async def tiers(engine: Engine) -> dict[str, AdapterTier]:
    return {state.digest: state.tier for state in await engine.adapter_states()}


async def test_more_adapters_are_served_than_fit_in_memory(setup: Setup) -> None:
    digests = [(await setup.engine.load_adapter(f)).digest for f in setup.adapters]
    loaded = setup.engine.stats()
    assert (loaded.adapters_loaded, loaded.adapter_reads) == (3, 3)
    alone = [(await complete(setup.engine, request(PROMPT, d))).token_ids for d in digests]
    assert len({tuple(tokens) for tokens in alone}) == 3
    for _ in range(3):
        crowd = await complete_all(setup.engine, [request(PROMPT, d) for d in digests])
        assert [c.token_ids for c in crowd] == alone
    stats = setup.engine.stats()
    assert stats.adapters_on_host == HOST_ADAPTERS
    assert stats.adapter_reads > loaded.adapter_reads
    assert stats.host_adapter_bytes_used <= stats.host_adapter_bytes_total
    states = await tiers(setup.engine)
    assert set(states) == set(digests)
    assert list(states.values()).count(AdapterTier.DISK) == 1


@pytest.mark.parametrize("damage", ["gone", "changed"])
async def test_a_folder_that_is_gone_or_changed_fails_only_its_own_requests(
    setup: Setup, tmp_path: Path, damage: str
) -> None:
    engine = setup.engine
    copy = tmp_path / "copy"
    shutil.copytree(setup.adapters[0], copy)
    lost = (await engine.load_adapter(copy)).digest
    tokens = (await complete(engine, request(PROMPT, lost))).token_ids
    others = [(await engine.load_adapter(f)).digest for f in setup.adapters[1:]]
    for digest in others:
        await complete(engine, request(PROMPT, digest))
    assert (await tiers(engine))[lost] == AdapterTier.DISK
    shutil.rmtree(copy)
    if damage == "changed":
        shutil.copytree(setup.adapters[1], copy)
    results = await asyncio.gather(
        *(complete(engine, request(PROMPT, d)) for d in (lost, *others, lost, None)),
        return_exceptions=True,
    )
    failed = [isinstance(result, AdapterUnavailableError) for result in results]
    assert failed == [True, False, False, True, False]
    assert engine.health().ready
    # Back again, here or elsewhere, it is served without any further step.
    assert (await engine.load_adapter(setup.adapters[0])).digest == lost
    assert (await complete(engine, request(PROMPT, lost))).token_ids == tokens


async def test_a_cold_request_can_be_aborted_and_its_adapter_unloaded(setup: Setup) -> None:
    digests = [(await setup.engine.load_adapter(f)).digest for f in setup.adapters]
    for digest in digests:
        await complete(setup.engine, request(PROMPT, digest))
    cold = next(d for d, tier in (await tiers(setup.engine)).items() if tier == AdapterTier.DISK)
    item = request(PROMPT, cold)
    waiting = asyncio.create_task(complete(setup.engine, item))
    await asyncio.sleep(0)
    await setup.engine.abort(item.request_id)
    await waiting
    await asyncio.wait_for(setup.engine.unload_adapter(cold), 120)
    assert cold not in await tiers(setup.engine)
    with pytest.raises(AdapterNotLoadedError):
        await complete(setup.engine, request(PROMPT, cold))
    await setup.engine.load_adapter(setup.adapters[digests.index(cold)])
    assert (await complete(setup.engine, request(PROMPT, cold))).token_ids
