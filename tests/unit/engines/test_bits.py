"""On the CPU a request has the same bits in any batch, chunking, thread count and slot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from remix_runtime.adapter.checkpoint import Checkpoint
from remix_runtime.contracts import GenerationRequest, SamplingParams
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.embedded.config import EmbeddedConfig, Weights
from remix_runtime.engines.embedded.core import EngineCore
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.scheduler import Chunk
from remix_runtime.engines.embedded.startup import build_core
from remix_runtime.kernels import native
from tests.engines import NoText
from tests.models import (
    ATTENTION,
    MLP,
    VOCAB_SIZE,
    random_checkpoint,
    save_tiny_base,
    tiny_model,
)

pytestmark = pytest.mark.skipif(
    native.lib() is None, reason="without a C compiler the bits are PyTorch's, not ours"
)
PROMPTS = [[int(i) for i in torch.randint(0, VOCAB_SIZE, (n,))] for n in (1, 7, 16, 23, 40)]


class Setup:
    """Not a dataclass: hypothesis would print it, tensors and all."""

    def __init__(self, core: EngineCore, checkpoints: list[Checkpoint]) -> None:
        self.core = core
        self.checkpoints = checkpoints


def core_of(folder: Path, family: str, dtype: torch.dtype, weights: Weights) -> Setup:
    base = save_tiny_base(folder / family, family, dtype=dtype)
    core = build_core(
        EmbeddedConfig(model=str(base), kv_cache_bytes=1 << 22, adapter_slots=4, weights=weights)
    )
    model = tiny_model(family)
    shapes = [(8, 4, 8, MLP), (3, 1, 5, (*MLP, *ATTENTION)), (4, 2, 4, ("down_proj", "q_proj"))]
    checkpoints = [
        random_checkpoint(model, n=n, k=k, r=r, target_modules=targets, seed=i)
        for i, (n, k, r, targets) in enumerate(shapes)
    ]
    for checkpoint in checkpoints:
        core.bank.add(core.bank.prepare(checkpoint))
    return Setup(core, checkpoints)


@pytest.fixture(
    scope="module",
    params=[
        ("llama", torch.float32, "stored"),
        ("qwen3", torch.bfloat16, "stored"),
        ("mistral", torch.float16, "stored"),
        ("qwen2", torch.bfloat16, "int8"),
    ],
    ids=str,
)
def setup(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setup]:
    threads = torch.get_num_threads()
    yield core_of(tmp_path_factory.mktemp("bits"), *request.param)
    torch.set_num_threads(threads)


def job_of(core: EngineCore, prompt: list[int], adapter: str | None) -> Job:
    request = GenerationRequest(
        request_id="x",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=1),
        digest=adapter,
    )
    item = Job(request, Completion(request, NoText(), ()))
    pages = core.scheduler.pool.take(core.scheduler.pool.pages_for(len(prompt)))
    assert pages is not None
    item.pages = pages
    if adapter is not None:
        slot = core.bank.pin_slot(adapter)
        assert slot is not None
        item.slot = slot
    return item


def free(core: EngineCore, item: Job) -> None:
    core.scheduler.pool.give_back(item.pages)
    if item.request.digest is not None:
        core.bank.unpin_slot(item.request.digest)


def logits(
    core: EngineCore,
    items: list[Job],
    steps: list[list[int]],
    routes: dict[str, Tensor] | None = None,
) -> list[Tensor]:
    """Last logits of each sequence. `steps[i]` are the chunk sizes of sequence i."""
    result: dict[int, Tensor] = {}
    done = [0] * len(items)
    for number in range(max(map(len, steps))):
        chunks = [
            Chunk(item, done[i], steps[i][number])
            for i, item in enumerate(items)
            if number < len(steps[i])
        ]
        chunks.sort(key=lambda chunk: chunk.job.slot)
        rows = iter(core.runner.run(chunks, routes))
        for chunk in chunks:
            i = items.index(chunk.job)
            done[i] += chunk.count
            if chunk.samples:
                result[i] = next(rows)
    return [result[i] for i in range(len(items))]


def alone(core: EngineCore, prompt: list[int], adapter: str | None) -> Tensor:
    item = job_of(core, prompt, adapter)
    (row_V,) = logits(core, [item], [[len(prompt)]])
    free(core, item)
    return row_V


@st.composite
def chunkings(draw: st.DrawFn) -> list[list[int]]:
    steps = []
    for prompt in PROMPTS:
        left, sizes = len(prompt), []
        while left:
            sizes.append(draw(st.integers(1, left)))
            left -= sizes[-1]
        steps.append(sizes)
    return steps


@settings(max_examples=25)
@given(steps=chunkings(), who=st.lists(st.integers(-1, 2), min_size=5, max_size=5), data=st.data())
def test_same_bits_in_any_batch_and_chunking(
    setup: Setup,
    steps: list[list[int]],
    who: list[int],
    data: st.DataObject,
) -> None:
    core, checkpoints = setup.core, setup.checkpoints
    names = [None if i < 0 else checkpoints[i].digest for i in who]
    torch.set_num_threads(1)
    expected = [alone(core, p, name) for p, name in zip(PROMPTS, names, strict=True)]
    torch.set_num_threads(data.draw(st.sampled_from([1, 2])))
    items = [job_of(core, p, name) for p, name in zip(PROMPTS, names, strict=True)]
    found = logits(core, items, steps)
    for item in items:
        free(core, item)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_same_bits_after_eviction_into_another_slot(
    setup: Setup,
) -> None:
    core, checkpoints = setup.core, setup.checkpoints
    digest = checkpoints[0].digest
    before = alone(core, PROMPTS[3], digest)
    core.bank.remove(digest)
    core.bank.add(core.bank.prepare(checkpoints[0]))
    taken = [core.bank.pin_slot(c.digest) for c in checkpoints[1:]]
    after = alone(core, PROMPTS[3], digest)
    for checkpoint in checkpoints[1:]:
        core.bank.unpin_slot(checkpoint.digest)
    assert None not in taken
    assert torch.equal(before, after)


def test_the_native_pass_agrees_with_the_modules_it_stands_for(
    setup: Setup,
) -> None:
    core, checkpoints = setup.core, setup.checkpoints
    assert core.runner._native is not None
    for checkpoint in (None, *checkpoints):
        assert_agrees(core, checkpoint.digest if checkpoint else None)


def assert_agrees(core: EngineCore, digest: str | None) -> None:
    native = alone(core, PROMPTS[4], digest)
    item = job_of(core, PROMPTS[4], digest)
    # Recording routes runs the model's own modules.
    (plain,) = logits(core, [item], [[len(PROMPTS[4])]], routes={})
    free(core, item)
    # The rotation of queries and keys, and its angles, round otherwise than PyTorch's.
    torch.testing.assert_close(native, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rope", [{"rope_type": "yarn"}, {"rope_type": "linear"}])
def test_the_native_pass_knows_scaled_angles(tmp_path: Path, rope: dict[str, object]) -> None:
    base = save_tiny_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"] |= {**rope, "factor": 8.0, "original_max_position_embeddings": 32}
    (base / "config.json").write_text(json.dumps(config))
    core = build_core(EmbeddedConfig(model=str(base), kv_cache_bytes=1 << 22))
    assert core.runner._native is not None
    assert_agrees(core, None)
