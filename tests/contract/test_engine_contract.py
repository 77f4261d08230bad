"""What every engine must do, whatever it is made of. One suite, every engine."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from remix_runtime.bank import AdapterBank
from remix_runtime.checkpoint import read_checkpoint, write_checkpoint
from remix_runtime.contracts import AdapterTier, Engine, FinishReason, TokenEvent
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.fake import FakeConfig, FakeEngine
from remix_runtime.errors import (
    AdapterNotLoadedError,
    AdapterUnavailableError,
    CheckpointError,
    EngineBusyError,
    EngineDeadError,
    InvalidRequestError,
)
from tests.engines import complete, complete_all, request
from tests.models import random_checkpoint, save_tiny_base, tiny_model

MAX_WAITING = 4
HOST_ADAPTERS = 2
"""In memory at once; the tests load three."""
PROMPT = [5, 17, 99, 3, 42]


@dataclass
class Setup:
    engine: Engine
    adapters: list[Path]
    broken: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("contract")
    save_tiny_base(root / "base", "llama")
    model = tiny_model("llama")
    for i in range(3):
        checkpoint = random_checkpoint(model, n=4, k=2, r=4, seed=i)
        write_checkpoint(root / f"a{i}", checkpoint.config, checkpoint.layers, readme="random")
    broken = root / "broken"
    broken.mkdir()
    return root


def adapter_bytes(folder: Path) -> int:
    """What the adapter in `folder` takes in the kernels' layout."""
    bank = AdapterBank({}, num_slots=1, device_bytes=1, host_bytes=1)
    return bank.prepare(read_checkpoint(folder)).num_bytes


@pytest.fixture(params=["fake", "embedded"])
async def setup(request: pytest.FixtureRequest, folders: Path) -> AsyncIterator[Setup]:
    engine: Engine
    if request.param == "fake":
        engine = FakeEngine(
            FakeConfig(max_running=2, max_waiting=MAX_WAITING, host_adapters=HOST_ADAPTERS)
        )
    else:
        engine = EmbeddedEngine(
            EmbeddedConfig(
                model=str(folders / "base"),
                max_running=2,
                max_waiting=MAX_WAITING,
                max_tokens_per_step=8,
                kv_cache_bytes=1 << 20,
                adapter_slots=2,
                host_adapter_bytes=HOST_ADAPTERS * adapter_bytes(folders / "a0"),
            )
        )
    assert not engine.health().ready
    await engine.start()
    yield Setup(engine, [folders / f"a{i}" for i in range(3)], folders / "broken")
    await engine.stop()


async def test_a_started_engine_is_ready_and_says_what_it_serves(setup: Setup) -> None:
    health, model = setup.engine.health(), setup.engine.model
    assert health.alive
    assert health.ready
    assert model.max_model_len > 32
    ids = setup.engine.tokenizer.encode("Hello, wörld", add_special_tokens=False)
    assert all(0 <= i < model.vocab_size for i in ids)
    assert setup.engine.tokenizer.decode(ids) == "Hello, wörld"


async def test_greedy_is_the_same_again_and_in_a_crowd(setup: Setup) -> None:
    digests = [(await setup.engine.load_adapter(f)).digest for f in setup.adapters]
    names = [None, *digests]
    alone = [(await complete(setup.engine, request(PROMPT, name))).token_ids for name in names]
    assert len({tuple(tokens) for tokens in alone}) == len(names)
    crowd = await complete_all(setup.engine, [request(PROMPT, n) for n in names])
    assert [c.token_ids for c in crowd] == alone


async def test_max_tokens_ends_with_length(setup: Setup) -> None:
    done = await complete(setup.engine, request(PROMPT, max_tokens=5, ignore_eos=True))
    assert len(done.token_ids) == 5
    assert done.finish_reason == FinishReason.LENGTH
    assert done.text == setup.engine.tokenizer.decode(done.token_ids)
    assert done.queue_seconds is not None
    assert done.queue_seconds >= 0


async def test_a_stop_string_ends_the_text_before_it(setup: Setup) -> None:
    whole = await complete(setup.engine, request(PROMPT, max_tokens=12, ignore_eos=True))
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 2]
    assert stop
    done = await complete(
        setup.engine, request(PROMPT, max_tokens=12, ignore_eos=True, stop=(stop,))
    )
    assert done.text == whole.text[: whole.text.find(stop)]
    assert done.finish_reason == FinishReason.STOP


async def test_a_stop_token_ends_the_completion(setup: Setup) -> None:
    whole = await complete(setup.engine, request(PROMPT, max_tokens=12, ignore_eos=True))
    stop = whole.token_ids[4]
    done = await complete(
        setup.engine, request(PROMPT, max_tokens=12, ignore_eos=True, stop_token_ids=(stop,))
    )
    assert done.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert done.finish_reason == FinishReason.STOP


async def test_the_end_token_ends_the_completion_unless_it_is_ignored(setup: Setup) -> None:
    (eos, *_) = setup.engine.model.eos_token_ids
    params = {"max_tokens": 3, "logit_bias": {eos: 100.0}}
    done = await complete(setup.engine, request(PROMPT, **params))
    assert (done.token_ids, done.text, done.finish_reason) == ([eos], "", FinishReason.STOP)
    done = await complete(setup.engine, request(PROMPT, **params, ignore_eos=True))
    assert (done.token_ids, done.finish_reason) == ([eos] * 3, FinishReason.LENGTH)


async def test_only_the_first_event_tells_the_time_in_the_queue(setup: Setup) -> None:
    item = request(PROMPT, max_tokens=3, ignore_eos=True)
    told = [event.queue_seconds is not None async for event in setup.engine.generate(item)]
    assert told == [True, False, False]


async def test_logprobs_come_with_every_token(setup: Setup) -> None:
    done = await complete(setup.engine, request(PROMPT, max_tokens=4, ignore_eos=True, logprobs=3))
    assert [p.chosen.token_id for p in done.logprobs] == done.token_ids
    for position in done.logprobs:
        values = [t.logprob for t in position.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert position.chosen.logprob <= values[0] <= 0
        assert position.top[0].token_id == position.chosen.token_id


async def test_a_seed_repeats_and_different_seeds_differ(setup: Setup) -> None:
    async def tokens(seed: int) -> list[int]:
        item = request(PROMPT, max_tokens=12, temperature=1.5, seed=seed, ignore_eos=True)
        return (await complete(setup.engine, item)).token_ids

    first = await tokens(1)
    assert await tokens(1) == first
    assert [await tokens(seed) for seed in (2, 3, 4)] != [first] * 3


@pytest.mark.parametrize("prompt", [[], [-1], [10**6]])
async def test_a_bad_prompt_is_refused_and_the_next_one_served(
    setup: Setup, prompt: list[int]
) -> None:
    with pytest.raises(InvalidRequestError):
        await complete(setup.engine, request(prompt))
    assert (await complete(setup.engine, request(PROMPT))).token_ids


async def test_a_request_over_the_context_is_refused(setup: Setup) -> None:
    limit = setup.engine.model.max_model_len
    with pytest.raises(InvalidRequestError) as caught:
        await complete(setup.engine, request(PROMPT, max_tokens=limit))
    assert caught.value.code == "context_length_exceeded"


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
    await asyncio.wait_for(unload, 10)
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
    infos = await asyncio.wait_for(asyncio.gather(*loads), 10)
    await asyncio.wait_for(unload, 10)
    assert {info.digest for info in infos} == {digest}
    assert (await complete(setup.engine, request(PROMPT, digest))).token_ids


async def test_stopping_while_an_unload_waits_leaves_nobody_waiting(setup: Setup) -> None:
    _, _running, unload = await unloading_beside_a_request(setup, max_tokens=200)
    await asyncio.wait_for(setup.engine.stop(), 10)
    with contextlib.suppress(EngineDeadError):
        await asyncio.wait_for(unload, 10)


async def test_abort_ends_the_request_and_frees_everything(setup: Setup) -> None:
    item = request(PROMPT, max_tokens=200, ignore_eos=True)
    events = setup.engine.generate(item)
    await anext(events)
    await setup.engine.abort(item.request_id)
    rest = [event async for event in events]
    assert rest[-1].finish_reason == FinishReason.ABORT
    await setup.engine.abort(item.request_id)
    await setup.engine.abort("never heard of")
    stats = setup.engine.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)


@pytest.mark.parametrize("moment", ["queued", "running"])
async def test_closing_the_iterator_aborts(setup: Setup, moment: str) -> None:
    blockers = [request(PROMPT, max_tokens=150, ignore_eos=True) for _ in range(2)]
    ahead = []
    if moment == "queued":
        ahead = [asyncio.create_task(complete(setup.engine, item)) for item in blockers]
        await asyncio.sleep(0.01)
    events = setup.engine.generate(request(PROMPT, max_tokens=200, ignore_eos=True))
    if moment == "running":
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
    else:
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    for item in blockers:
        await setup.engine.abort(item.request_id)
    await asyncio.gather(*ahead)
    for _ in range(200):
        stats = setup.engine.stats()
        if (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0):
            break
        await asyncio.sleep(0.01)
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)
    assert (await complete(setup.engine, request(PROMPT))).token_ids


async def test_a_full_queue_refuses_at_once_and_recovers(setup: Setup) -> None:
    items = [request(PROMPT, max_tokens=60, ignore_eos=True) for _ in range(2 + MAX_WAITING)]
    tasks = [asyncio.create_task(complete(setup.engine, item)) for item in items]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError) as caught:
        await asyncio.wait_for(complete(setup.engine, request(PROMPT)), 0.5)
    assert caught.value.retry_after > 0
    done = await asyncio.gather(*tasks)
    assert {len(c.token_ids) for c in done} == {60}
    assert (await complete(setup.engine, request(PROMPT))).token_ids


async def test_draining_lets_requests_end_and_refuses_new_ones(setup: Setup) -> None:
    events = setup.engine.generate(request(PROMPT, max_tokens=30, ignore_eos=True))
    count = len((await anext(events)).token_ids)
    stopping = asyncio.create_task(setup.engine.stop(drain_seconds=20))
    await asyncio.sleep(0)
    assert not setup.engine.health().ready
    with pytest.raises(EngineBusyError):
        await complete(setup.engine, request(PROMPT))
    async for event in events:
        count += len(event.token_ids)
        last = event.finish_reason
    await stopping
    assert (count, last) == (30, FinishReason.LENGTH)
    with pytest.raises((EngineBusyError, EngineDeadError)):
        await complete(setup.engine, request(PROMPT))
    await setup.engine.stop()


async def test_stopping_without_patience_aborts(setup: Setup) -> None:
    events = setup.engine.generate(request(PROMPT, max_tokens=200, ignore_eos=True))
    await anext(events)
    stopping = asyncio.create_task(setup.engine.stop())
    reasons = [event.finish_reason async for event in events]
    await asyncio.wait_for(stopping, 10)
    assert reasons[-1] == FinishReason.ABORT


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
    await asyncio.wait_for(setup.engine.unload_adapter(cold), 10)
    assert cold not in await tiers(setup.engine)
    with pytest.raises(AdapterNotLoadedError):
        await complete(setup.engine, request(PROMPT, cold))
    await setup.engine.load_adapter(setup.adapters[digests.index(cold)])
    assert (await complete(setup.engine, request(PROMPT, cold))).token_ids


async def test_a_tenant_with_a_long_queue_does_not_hold_up_another(setup: Setup) -> None:
    """All of the loud tenant's requests came first; the quiet one is served before its last."""
    order: list[str] = []

    async def run(tenant: str) -> None:
        item = request(PROMPT, tenant=tenant, max_tokens=30, ignore_eos=True)
        await complete(setup.engine, item)
        order.append(tenant)

    loud = [asyncio.create_task(run("loud")) for _ in range(2 + MAX_WAITING - 1)]
    await asyncio.sleep(0)
    await asyncio.gather(run("quiet"), *loud)
    assert "loud" in order[order.index("quiet") + 1 :]
    assert order.index("quiet") <= 3
