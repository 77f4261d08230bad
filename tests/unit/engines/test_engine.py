"""What crosses between the event loop and the engine's thread, and what goes wrong there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint import Checkpoint, write_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.adapter.parity import record_parity
from remix_runtime.contracts import FinishReason, TokenEvent
from remix_runtime.engines import front
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.embedded.core import EngineCore
from remix_runtime.engines.embedded.scheduler import Chunk
from remix_runtime.errors import ConfigError, EngineDeadError, InvalidRequestError, RemixError
from tests.engines import complete, complete_all, request
from tests.models import random_checkpoint, save_tiny_base, tiny_model


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    save_tiny_base(tmp_path / "base", "llama")
    engine = EmbeddedEngine(
        EmbeddedConfig(
            model=str(tmp_path / "base"), kv_cache_bytes=1 << 20, adapter_slots=1, max_running=4
        )
    )
    await engine.start()
    yield engine
    await engine.stop()


def core_of(engine: EmbeddedEngine) -> EngineCore:
    return engine._thread.running_core()


def adapter(folder: Path, seed: int) -> Path:
    """A random adapter with a parity file."""
    model = tiny_model("llama")
    checkpoint: Checkpoint = random_checkpoint(model, n=4, k=2, r=4, seed=seed)
    parity = record_parity(model, attach_checkpoint(model, checkpoint), [[1, 2, 3], [4, 5]])
    write_checkpoint(folder, checkpoint.config, checkpoint.layers, readme="x", parity=parity)
    return folder


async def test_a_command_whose_caller_left_does_not_end_the_engine(engine: EmbeddedEngine) -> None:
    hold = threading.Event()
    holding = asyncio.create_task(engine._thread.call(hold.wait))
    leaving = asyncio.create_task(engine._thread.call(lambda: 1))
    await asyncio.sleep(0.05)
    leaving.cancel()
    hold.set()
    assert await holding
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await engine._thread.call(lambda: 2) == 2
    assert engine.health().ready
    assert len((await complete(engine, request([1, 2], max_tokens=3))).token_ids) == 3


async def test_a_stall_is_seen_in_a_command_and_over_when_it_ends(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "STALL_SECONDS", 0.05)
    hold = threading.Event()
    holding = asyncio.create_task(engine._thread.call(hold.wait))
    await asyncio.sleep(0.2)
    health = engine.health()
    assert (health.alive, health.ready) == (False, False)
    assert "no progress" in health.reason
    hold.set()
    await holding
    await complete(engine, request([1], max_tokens=1))
    await asyncio.sleep(0.2)  # idle is no stall
    assert engine.health().ready


async def test_the_time_in_the_queue_is_told_once_whenever_the_abort_comes(
    engine: EmbeddedEngine,
) -> None:
    core = core_of(engine)

    def aborted_after(steps: int) -> list[TokenEvent]:
        item = request([1, 2], max_tokens=5)
        outputs = core.add(item)
        for _ in range(steps):
            outputs += core.step()
        outputs += core.abort(item.request_id)
        return [output.event for output in outputs if isinstance(output.event, TokenEvent)]

    for steps, told in ((0, 0), (1, 1), (2, 1)):
        events = await engine._thread.call(partial(aborted_after, steps))
        assert len(events) == steps + 1
        assert sum(event.queue_seconds is not None for event in events) == told


def fail_steps(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    runner = core_of(engine).runner
    run, left = runner.run, times

    def failing(chunks: Sequence[Chunk], *options: Any) -> Tensor:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("no memory")
        return run(chunks, *options)

    monkeypatch.setattr(runner, "run", failing)


async def test_a_step_that_fails_takes_its_own_requests_with_it(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_steps(engine, monkeypatch, 1)
    with pytest.raises(RemixError, match="could not compute"):
        await complete(engine, request([1, 2]))
    assert (await complete(engine, request([1, 2]))).token_ids
    assert engine.stats().kv_tokens_used == 0


async def test_an_engine_whose_every_step_fails_is_dead_and_says_so_to_all(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_steps(engine, monkeypatch, 10**6)
    requests = [complete(engine, request([i], max_tokens=2)) for i in range(1, 13)]
    ends = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 120)
    assert all(isinstance(end, RemixError) for end in ends)
    assert isinstance(ends[-1], EngineDeadError)
    assert not engine.health().alive
    with pytest.raises(EngineDeadError):
        await complete(engine, request([1]))


async def test_a_row_that_is_not_finite_fails_alone(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = core_of(engine).runner
    run = runner.run

    def poisoned(chunks: Sequence[Chunk], *options: Any) -> Tensor:
        logits_SV = run(chunks, *options).clone()
        sampling = [chunk.job for chunk in chunks if chunk.samples]
        for row, sequence in enumerate(sampling):
            if sequence.tokens[0] == 7:
                logits_SV[row] = torch.nan
        return logits_SV

    monkeypatch.setattr(runner, "run", poisoned)
    bad, good = await asyncio.gather(
        complete(engine, request([7, 1])), complete(engine, request([8, 1])), return_exceptions=True
    )
    assert isinstance(bad, RemixError)
    assert not isinstance(good, BaseException)
    assert good.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)


async def test_the_context_is_what_the_kv_budget_holds(tmp_path: Path) -> None:
    save_tiny_base(tmp_path, "llama")
    config = EmbeddedConfig(model=str(tmp_path), kv_cache_bytes=40_000)
    engine = EmbeddedEngine(config)
    await engine.start()
    try:
        room = engine.stats().kv_tokens_total
        assert engine.model.max_model_len == room < 512
        done = await complete(engine, request([1] * (room - 1), max_tokens=1))
        assert len(done.token_ids) == 1
        with pytest.raises(InvalidRequestError) as caught:
            await complete(engine, request([1] * room, max_tokens=1))
        assert caught.value.code == "context_length_exceeded"
    finally:
        await engine.stop()
    more = EmbeddedEngine(
        EmbeddedConfig(model=str(tmp_path), kv_cache_bytes=40_000, max_model_len=room + 1)
    )
    with pytest.raises(ConfigError, match=f"max_model_len: found {room + 1}, kv_cache_bytes"):
        await more.start()


async def test_a_load_that_fails_unexpectedly_leaves_nothing_and_is_checked_again(
    engine: EmbeddedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter(tmp_path / "a", 1)

    def broken(*_: object) -> object:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(core_of(engine).runner, "run", broken)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not enough memory"):
            await engine.load_adapter(folder)
        assert core_of(engine).bank.host_bytes_used == 0
    monkeypatch.undo()
    assert await engine.load_adapter(folder)


async def test_a_cancelled_load_or_unload_is_not_half_done(
    engine: EmbeddedEngine, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "a", 1)
    for ticks in range(0, 60, 3):
        load = asyncio.create_task(engine.load_adapter(folder))
        for _ in range(ticks):
            await asyncio.sleep(0.001)
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
        digest = (await engine.load_adapter(folder)).digest
        unload = asyncio.create_task(engine.unload_adapter(digest))
        await asyncio.sleep(0)
        unload.cancel()
        await engine.unload_adapter(digest)
        assert core_of(engine).bank.host_bytes_used == 0


async def test_a_load_gets_its_slot_although_requests_keep_coming(
    engine: EmbeddedEngine, tmp_path: Path
) -> None:
    digest = (await engine.load_adapter(adapter(tmp_path / "a", 1))).digest
    over = False

    async def client() -> None:
        while not over:
            await complete(engine, request([1, 2], digest, max_tokens=10, ignore_eos=True))

    clients = [asyncio.create_task(client()) for _ in range(6)]
    await asyncio.sleep(0.05)
    other = await asyncio.wait_for(engine.load_adapter(adapter(tmp_path / "b", 2)), 120)
    # And so does a request for it, under the same pressure.
    assert (await asyncio.wait_for(complete(engine, request([3], other.digest)), 120)).token_ids
    over = True
    await asyncio.wait_for(asyncio.gather(*clients), 120)


async def test_a_truncated_base_is_a_config_error(tmp_path: Path) -> None:
    weights = save_tiny_base(tmp_path, "llama") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read"):
        await EmbeddedEngine(EmbeddedConfig(model=str(tmp_path))).start()


async def test_the_base_is_named_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_base(tmp_path / "tiny", "llama")
    (tmp_path / "linked").symlink_to(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path / "tiny")
    names = []
    for model in (".", "../linked", str(tmp_path / "tiny")):
        engine = EmbeddedEngine(EmbeddedConfig(model=model, kv_cache_bytes=1 << 20))
        await engine.start()
        names.append(engine.model.name)
        await engine.stop()
    assert names == ["tiny", "linked", "tiny"]


async def test_an_engine_is_started_once(engine: EmbeddedEngine) -> None:
    with pytest.raises(ConfigError, match="started once"):
        await engine.start()
    await engine.stop()
    with pytest.raises(ConfigError, match="started once"):
        await engine.start()


async def test_a_start_that_is_cancelled_leaves_no_thread(tmp_path: Path) -> None:
    save_tiny_base(tmp_path, "llama")
    engine = EmbeddedEngine(EmbeddedConfig(model=str(tmp_path), kv_cache_bytes=1 << 20))
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    threads = [thread for thread in threading.enumerate() if thread.name == "remix-engine"]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    for thread in threads:
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()
    await engine.stop()


@pytest.mark.parametrize("cache", [True, False])
async def test_what_is_cached_is_told_and_counted(tmp_path: Path, cache: bool) -> None:
    save_tiny_base(tmp_path, "llama")
    engine = EmbeddedEngine(
        EmbeddedConfig(model=str(tmp_path), kv_cache_bytes=1 << 20, prefix_cache=cache)
    )
    await engine.start()
    prompt, told = list(range(40)), []
    for _ in range(2):
        events = [event async for event in engine.generate(request(prompt, max_tokens=4))]
        assert all(event.cached_tokens is None for event in events[1:])
        told.append(events[0].cached_tokens)
    stats = engine.stats()
    await engine.stop()
    assert told == ([0, 32] if cache else [None, None])
    assert stats.kv_tokens_cached == (32 if cache else 0)
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == ((80, 32) if cache else (0, 0))
    assert stats.kv_tokens_used == 0


async def test_requests_that_outgrow_memory_wait_and_go_on(tmp_path: Path) -> None:
    save_tiny_base(tmp_path, "llama")
    items = [request([number, 2, 3], max_tokens=100, ignore_eos=True) for number in range(3)]
    found = []
    for size in (1 << 20, 150_000):
        engine = EmbeddedEngine(EmbeddedConfig(model=str(tmp_path), kv_cache_bytes=size))
        await engine.start()
        again = [replace(item, request_id=f"{item.request_id} {size}") for item in items]
        found.append([answer.token_ids for answer in await complete_all(engine, again)])
        preemptions = engine.stats().preemptions
        await engine.stop()
    assert found[0] == found[1]
    assert preemptions
