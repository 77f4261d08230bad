"""Train/serve drift is caught at the door: an adapter's parity file is replayed when it loads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remix_runtime.checkpoint import Checkpoint, Parity, write_checkpoint
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.errors import CheckpointFormatError, ParityError
from remix_runtime.layers import attach_checkpoint
from remix_runtime.parity import record_parity
from tests.engines import complete, request
from tests.models import random_checkpoint, save_tiny_base, tiny_model

PROMPTS = [[5, 9, 200, 31], list(range(40))]


def recorded(checkpoint: Checkpoint, family: str = "llama") -> Parity:
    model = tiny_model(family)
    return record_parity(model, attach_checkpoint(model, checkpoint), PROMPTS)


def write(folder: Path, checkpoint: Checkpoint, parity: Parity) -> Path:
    write_checkpoint(folder, checkpoint.config, checkpoint.layers, readme="random", parity=parity)
    return folder


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    base = save_tiny_base(tmp_path / "base")
    engine = EmbeddedEngine(
        EmbeddedConfig(model=str(base), adapter_slots=1, kv_cache_bytes=1 << 20)
    )
    await engine.start()
    yield engine
    await engine.stop()


async def test_a_faithful_adapter_loads(engine: EmbeddedEngine, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tiny_model("llama"), n=8, k=3, r=4)
    info = await engine.load_adapter(write(tmp_path / "a", checkpoint, recorded(checkpoint)))
    assert (await complete(engine, request([1, 2, 3], info.digest))).token_ids


async def test_what_training_did_not_see_is_refused_and_leaves_nothing(
    engine: EmbeddedEngine, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(tiny_model("llama"), seed=1)
    other = random_checkpoint(tiny_model("llama"), seed=2)
    folder = write(tmp_path / "a", checkpoint, recorded(other))
    with pytest.raises(ParityError, match=r"prompt 0: position \d+: .*expected"):
        await engine.load_adapter(folder)
    stats = engine.stats()
    assert (stats.adapter_slots_used, stats.kv_tokens_used) == (0, 0)
    assert (await complete(engine, request([1, 2, 3]))).token_ids
    good = write(tmp_path / "b", checkpoint, recorded(checkpoint))
    assert await engine.load_adapter(good)


async def test_the_replay_waits_for_a_slot_that_a_request_holds(
    engine: EmbeddedEngine, tmp_path: Path
) -> None:
    first, second = (random_checkpoint(tiny_model("llama"), seed=i) for i in (3, 4))
    digest = (await engine.load_adapter(write(tmp_path / "a", first, recorded(first)))).digest
    running = engine.generate(request([1, 2], digest, max_tokens=60, ignore_eos=True))
    await anext(running)
    load = asyncio.create_task(engine.load_adapter(write(tmp_path / "b", second, recorded(second))))
    count = 1
    async for event in running:
        count += len(event.token_ids)
    assert count == 60
    assert (await asyncio.wait_for(load, 10)).digest != digest


async def test_a_prompt_that_no_memory_can_hold_is_refused(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    engine = EmbeddedEngine(EmbeddedConfig(model=str(base), kv_cache_bytes=40_000))
    await engine.start()
    checkpoint = random_checkpoint(tiny_model("llama"))
    folder = write(tmp_path / "a", checkpoint, recorded(checkpoint))
    with pytest.raises(CheckpointFormatError, match="found 40 tokens, expected at most 32"):
        await engine.load_adapter(folder)
    await engine.stop()
