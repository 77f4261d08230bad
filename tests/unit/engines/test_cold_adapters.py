"""Adapters that left host memory, in the embedded engine: read again beside other requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.bank import AdapterBank
from remix_runtime.checkpoint import write_checkpoint
from remix_runtime.contracts import AdapterTier, FinishReason
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine, adapters
from tests.engines import complete, request
from tests.models import random_checkpoint, save_tiny_base, tiny_model


class SlowDisk:
    """Reads of adapters that went cold wait until `let` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.let = threading.Event()
        read = adapters._read_again

        def slow(*args: Any) -> Any:
            self.begun.set()
            assert self.let.wait(60)
            return read(*args)

        monkeypatch.setattr(adapters, "_read_again", slow)


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
    assert engine.stats().waiting_for_read == 1
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
    for digest in (*digests, *digests):
        assert (await complete(engine, request([1, 2], digest))).token_ids
    assert engine.stats().adapter_reads >= 3
