"""Train/serve drift is caught at the door: an adapter's parity file is replayed when it loads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint import Checkpoint, Parity, write_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.adapter.parity import record_parity
from remix_runtime.base.model import load_model
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.embedded.config import Weights
from remix_runtime.engines.embedded.scheduler import Chunk
from remix_runtime.engines.embedded.startup import build_core
from remix_runtime.errors import CheckpointFormatError, ParityError
from remix_runtime.kernels import native
from tests.engines import complete, request
from tests.models import random_checkpoint, save_tiny_base, tiny_model

PROMPTS = [[5, 9, 200, 31], list(range(40))]
BUDGET = 8
"""Tokens of a step: a fifth of the long prompt."""


def recorded(checkpoint: Checkpoint, family: str = "llama") -> Parity:
    model = tiny_model(family)
    return record_parity(model, attach_checkpoint(model, checkpoint), PROMPTS)


def write(folder: Path, checkpoint: Checkpoint, parity: Parity) -> Path:
    write_checkpoint(folder, checkpoint.config, checkpoint.layers, readme="random", parity=parity)
    return folder


@pytest.fixture(params=[BUDGET, 512], ids=["in chunks", "in one piece"])
async def engine(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedEngine]:
    base = save_tiny_base(tmp_path / "base")
    engine = EmbeddedEngine(
        EmbeddedConfig(
            model=str(base),
            adapter_slots=1,
            kv_cache_bytes=1 << 20,
            max_running=4,
            max_tokens_per_step=request.param,
        )
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
    assert (await asyncio.wait_for(load, 120)).digest != digest


def test_running_requests_move_on_with_every_chunk_of_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_base(tmp_path / "base")
    core = build_core(
        EmbeddedConfig(
            model=str(base), kv_cache_bytes=1 << 20, max_running=4, max_tokens_per_step=BUDGET
        )
    )
    replayed: list[int] = []
    run = core.runner.run

    def counting(chunks: Sequence[Chunk], routes: dict[str, Tensor] | None = None) -> Tensor:
        if routes is not None:
            replayed.append(sum(chunk.count for chunk in chunks))
        return run(chunks, routes)

    monkeypatch.setattr(core.runner, "run", counting)
    core.add(request([1, 2], max_tokens=100, ignore_eos=True))
    core.step()
    checkpoint = random_checkpoint(tiny_model("llama"))
    done = core.load(core.bank.prepare(checkpoint), 2, recorded(checkpoint))
    assert done is not None
    while not done.done():
        assert len(core.step()) == 1, "the running request has its token in each step"
    assert done.exception() is None
    assert replayed == [4, *[BUDGET - 1] * 5, 5]


async def test_drift_in_the_last_chunk_is_seen(engine: EmbeddedEngine, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tiny_model("llama"))
    parity = recorded(checkpoint)
    long = parity.prompts[1]
    routes = long.routes_LTk.clone()
    routes[0, -1] = (routes[0, -1] + 1) % 4  # of four experts
    margins = torch.full_like(long.margins_LT, 1.0)
    forged = replace(long, routes_LTk=routes.sort(-1).values, margins_LT=margins)
    parity = replace(parity, prompts=(parity.prompts[0], forged))
    with pytest.raises(ParityError, match="prompt 1: position 39"):
        await engine.load_adapter(write(tmp_path / "a", checkpoint, parity))


async def test_a_prompt_that_no_memory_can_hold_is_refused(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    engine = EmbeddedEngine(EmbeddedConfig(model=str(base), kv_cache_bytes=40_000))
    await engine.start()
    checkpoint = random_checkpoint(tiny_model("llama"))
    folder = write(tmp_path / "a", checkpoint, recorded(checkpoint))
    with pytest.raises(CheckpointFormatError, match="found 40 tokens, expected at most 32"):
        await engine.load_adapter(folder)
    await engine.stop()


@pytest.mark.skipif(native.lib() is None, reason="no C compiler")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("weights", ["stored", "int8"])
async def test_tolerances_by_the_type_of_the_weights(
    tmp_path: Path, dtype: torch.dtype, weights: Weights
) -> None:
    """Weights as stored have float32's, whatever is stored; those of 8 bits their own."""
    base = save_tiny_base(tmp_path / "base", dtype=dtype)
    model = load_model(str(base))
    checkpoint = random_checkpoint(model, n=4, k=4, r=4)  # no route to differ
    layers = attach_checkpoint(model, checkpoint)
    faithful = record_parity(model, layers, PROMPTS)

    def moved(by: float, down: float = 0.0) -> Parity:
        """The file's top logits, as a share of their size, and by a number."""
        prompts = [
            replace(p, top_logits_j=p.top_logits_j + by * p.top_logits_j.abs().clamp(min=1) - down)
            for p in faithful.prompts
        ]
        return replace(faithful, prompts=tuple(prompts))

    slack = 2.0**10 if weights == "int8" else 1.0
    engine = EmbeddedEngine(
        EmbeddedConfig(model=str(base), kv_cache_bytes=1 << 20, weights=weights)
    )
    await engine.start()
    try:
        for number, by in enumerate((0.0, 0.5e-3 * slack)):
            folder = write(tmp_path / str(number), checkpoint, moved(by))
            info = await engine.load_adapter(folder)
            await engine.unload_adapter(info.digest)
        with pytest.raises(ParityError, match="found logit"):
            await engine.load_adapter(write(tmp_path / "far", checkpoint, moved(0, down=8.0)))
    finally:
        await engine.stop()
