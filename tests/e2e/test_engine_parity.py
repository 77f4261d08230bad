"""The embedded engine's greedy tokens against the per-token reference, alone and in a crowd.

Adapters have a strong random effect. Every answer must be equal, token for token, in float32.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from remix_runtime.adapter.checkpoint.types import Scaling
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from tests.engines import complete, complete_all, request
from tests.models import ATTENTION, FAMILIES, MLP, random_checkpoint, save_tiny_base, tiny_model
from tests.reference import greedy, with_adapter

NEW_TOKENS = 10
# n, k, r, targets, scaling: corners of the grid, and shapes that are no multiple of anything.
GRID: list[tuple[int, int, int, tuple[str, ...], Scaling]] = [
    (1, 1, 4, MLP, "rslora"),
    (8, 4, 8, MLP, "rslora"),
    (4, 2, 4, (*MLP, *ATTENTION), "lora"),
    (5, 3, 3, ("down_proj",), "rslora"),
    (16, 16, 1, ("gate_proj", "q_proj"), "lora"),
    (3, 1, 16, ATTENTION, "rslora"),
]


def prompts(count: int, vocab: int, seed: int) -> list[list[int]]:
    """Lengths on both sides of a page, a chunk and a sliding window."""
    rng = random.Random(seed)
    lengths = [1, 3, 15, 16, 17, 33, *(rng.randint(2, 40) for _ in range(count))]
    return [[rng.randrange(vocab) for _ in range(length)] for length in lengths[:count]]


def reference_tokens(
    family: str, checkpoint: Checkpoint | None, prompt_lists: list[list[int]]
) -> list[list[int]]:
    model = tiny_model(family)
    if checkpoint is not None:
        with_adapter(model, checkpoint)
    return [greedy(model, prompt, NEW_TOKENS) for prompt in prompt_lists]


@pytest.mark.parametrize("family", FAMILIES)
async def test_same_tokens_as_the_reference_alone_and_with_16_others(
    family: str, tmp_path: Path
) -> None:
    await check_parity(family, tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
async def test_the_pytorch_path_has_the_same_tokens(
    family: str, tmp_path: Path, without_native_kernels: None
) -> None:
    """What runs on CUDA, and on a CPU without a compiler."""
    await check_parity(family, tmp_path)


async def check_parity(family: str, tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base", family)
    model = tiny_model(family)
    folders = []
    for i, (n, k, r, targets, scaling) in enumerate(GRID):
        checkpoint = random_checkpoint(
            model, n=n, k=k, r=r, target_modules=targets, scaling=scaling, seed=i
        )
        folders.append(tmp_path / f"adapter-{i}")
        write_checkpoint(folders[-1], checkpoint.config, checkpoint.layers, readme="random")

    config = EmbeddedConfig(model=str(base), max_tokens_per_step=24, max_running=17)
    engine = EmbeddedEngine(config)
    await engine.start()
    try:
        adapters: list[tuple[str | None, Checkpoint | None]] = [(None, None)]
        for folder in folders:
            info = await engine.load_adapter(folder)
            adapters.append((info.digest, read_checkpoint(folder)))
        jobs, expected = [], []
        for i, (digest, checkpoint) in enumerate(adapters):
            some = prompts(3, model.config.vocab_size, seed=i)
            expected += reference_tokens(family, checkpoint, some)
            jobs += [(prompt, digest) for prompt in some]

        def item(job: tuple[list[int], str | None]):  # type: ignore[no-untyped-def]
            return request(job[0], job[1], max_tokens=NEW_TOKENS, ignore_eos=True)

        alone = [(await complete(engine, item(job))).token_ids for job in jobs]
        assert alone == expected
        order = list(range(len(jobs)))
        random.Random(0).shuffle(order)
        crowd = await complete_all(engine, [item(jobs[i]) for i in order])
        assert [c.token_ids for c in crowd] == [expected[i] for i in order]
        # The adapters matter: a prompt is not answered the same by all of them.
        same = [request(jobs[2][0], d, max_tokens=NEW_TOKENS, ignore_eos=True) for d, _ in adapters]
        answers = [tuple(c.token_ids) for c in await complete_all(engine, same)]
        assert len(set(answers)) == len(adapters)
    finally:
        await engine.stop()
