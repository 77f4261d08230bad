"""Adapters that left host memory, in the embedded engine: read again beside other requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.contracts import FinishReason
from remix_runtime.engine_state import AdapterTier
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine, adapters
from remix_runtime.engines.embedded.bank import AdapterBank
from tests.engines import complete, request
from tests.models import random_checkpoint, save_tiny_base, tiny_model


class SlowDisk:
    """Reads of adapters that went cold wait until `let` is set; or those of loads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, function: str = "_read_again") -> None:
        self.begun = threading.Event()
        self.let = threading.Event()
        read = getattr(adapters, function)

        def slow(*args: Any, **options: Any) -> Any:
            self.begun.set()
            assert self.let.wait(60)
            return read(*args, **options)

        monkeypatch.setattr(adapters, function, slow)


@pytest.fixture
async def cold(tmp_path: Path) -> AsyncIterator[tuple[EmbeddedEngine, list[Path], list[str]]]:
    """An engine whose host memory holds one of two adapters: the second."""
    model = tiny_model("llama")
    save_tiny_base(tmp_path / "base", "llama")
    folders = [tmp_path / str(seed) for seed in range(2)]
    for seed, folder in enumerate(folders):
        checkpoint = random_checkpoint(model, seed=seed)
        write_checkpoint(folder, checkpoint.config, checkpoint.layers, readme="random")
    size = AdapterBank({}, num_slots=1, device_bytes=1, host_bytes=1).prepare(checkpoint).num_bytes
    engine = EmbeddedEngine(
        EmbeddedConfig(
            model=str(tmp_path / "base"), kv_cache_bytes=1 << 20, host_adapter_bytes=size
        )
    )
    await engine.start()
    digests = [(await engine.load_adapter(folder)).digest for folder in folders]
    await complete(engine, request([1, 2], digests[1]))
    tiers = {state.digest: state.tier for state in await engine.adapter_states()}
    assert tiers == {digests[0]: AdapterTier.DISK, digests[1]: AdapterTier.DEVICE}
    yield engine, folders, digests
    await engine.stop()


async def test_others_go_on_while_an_adapter_is_read(
    cold: tuple[EmbeddedEngine, list[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _, digests = cold
    disk = SlowDisk(monkeypatch)
    waiting = asyncio.create_task(complete(engine, request([1, 2], digests[0])))
    assert await asyncio.to_thread(disk.begun.wait, 60)
    assert engine.stats().waiting == 1
    assert (await complete(engine, request([1, 2]))).token_ids
    assert not waiting.done()
    disk.let.set()
    assert (await waiting).token_ids
    assert (await complete(engine, request([1, 2], digests[1]))).token_ids


async def test_an_adapter_unloaded_while_it_is_read_leaves_the_engine_able_to_read(
    cold: tuple[EmbeddedEngine, list[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, folders, digests = cold
    disk = SlowDisk(monkeypatch)
    item = request([1, 2], digests[0])
    waiting = asyncio.create_task(complete(engine, item))
    assert await asyncio.to_thread(disk.begun.wait, 60)
    await engine.abort(item.request_id)
    assert (await waiting).finish_reason == FinishReason.ABORT
    await engine.unload_adapter(digests[0])
    assert engine.stats().host_adapter_bytes_used == 0, "what was set aside is given back"
    disk.let.set()
    await engine.load_adapter(folders[0])
    reads = engine.stats().adapter_reads
    for digest in (*digests, *digests):
        assert (await complete(engine, request([1, 2], digest))).token_ids
    stats = engine.stats()
    assert stats.adapter_reads >= 3 + reads


async def test_requests_cold_ones_too_and_unloads_go_on_while_a_load_reads(
    cold: tuple[EmbeddedEngine, list[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, folders, digests = cold
    disk = SlowDisk(monkeypatch, "read_adapter")
    await engine.unload_adapter(digests[1])
    load = asyncio.create_task(engine.load_adapter(folders[1]))
    assert await asyncio.to_thread(disk.begun.wait, 60)
    assert (await complete(engine, request([1, 2], digests[0]))).token_ids
    await engine.unload_adapter(digests[0])
    assert engine.stats().host_adapter_bytes_used == 0
    assert not load.done()
    disk.let.set()
    assert (await load).digest == digests[1]


async def test_others_go_on_while_an_unload_waits(
    cold: tuple[EmbeddedEngine, list[Path], list[str]],
) -> None:
    engine, _, digests = cold
    running = engine.generate(request([1], digests[1], max_tokens=200, ignore_eos=True))
    await anext(running)
    unload = asyncio.create_task(engine.unload_adapter(digests[1]))
    for _ in range(3):
        assert (await complete(engine, request([1, 2]))).token_ids
    assert not unload.done()
    await running.aclose()  # type: ignore[attr-defined]
    await unload
    assert (await complete(engine, request([1, 2], digests[0]))).token_ids


async def test_a_lost_folder_loaded_from_elsewhere_while_it_is_read_fails_no_request(
    cold: tuple[EmbeddedEngine, list[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, folders, digests = cold
    disk = SlowDisk(monkeypatch)
    waiting = asyncio.create_task(complete(engine, request([1, 2], digests[0])))
    assert await asyncio.to_thread(disk.begun.wait, 60)
    elsewhere = folders[0].rename(folders[0].with_name("elsewhere"))
    await engine.load_adapter(elsewhere)
    disk.let.set()
    assert (await waiting).token_ids


async def test_the_time_of_reads_and_of_slot_fills_adds_up(
    cold: tuple[EmbeddedEngine, list[Path], list[str]],
) -> None:
    engine, _, digests = cold
    before = engine.stats()
    assert (before.adapter_reads, before.adapter_slot_fills) == (2, 1)
    for digest in digests:
        await complete(engine, request([1, 2], digest))
    after = engine.stats()
    assert (after.adapter_reads, after.adapter_slot_fills) == (4, 3)
    last = {state.digest: state.read_seconds for state in await engine.adapter_states()}
    spent = after.adapter_read_seconds - before.adapter_read_seconds
    assert spent == pytest.approx(sum(last.values()))
    assert after.adapter_slot_fill_seconds > before.adapter_slot_fill_seconds > 0
