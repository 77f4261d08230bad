"""The embedded engine on one CUDA device; `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from remix_runtime.adapter.checkpoint import read_checkpoint, write_checkpoint
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from tests.engines import complete_all, request
from tests.gpu.device import DEVICE, on_device
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.reference import greedy, with_adapter

pytestmark = [pytest.mark.gpu, on_device]


async def test_greedy_tokens_are_those_of_the_reference(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    model = tiny_model("llama")
    engine = EmbeddedEngine(
        EmbeddedConfig(model=str(base), device=DEVICE, dtype="float32", max_tokens_per_step=32)
    )
    await engine.start()
    jobs, expected = [], []
    for seed, (n, k, r) in enumerate([(8, 4, 8), (4, 1, 3)]):
        checkpoint = random_checkpoint(model, n=n, k=k, r=r, seed=seed)
        folder = tmp_path / str(seed)
        write_checkpoint(folder, checkpoint.config, checkpoint.layers, readme="random")
        digest = (await engine.load_adapter(folder)).digest
        reference = tiny_model("llama")
        with_adapter(reference, read_checkpoint(folder))
        for length in (1, 17, 40):
            prompt = [int(i) for i in torch.randint(0, 256, (length,))]
            jobs.append(request(prompt, digest, max_tokens=8, ignore_eos=True))
            expected.append(greedy(reference, prompt, 8))
    found = await complete_all(engine, jobs)
    await engine.stop()
    assert [completion.token_ids for completion in found] == expected
