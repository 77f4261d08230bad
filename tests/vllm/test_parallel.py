"""ReMix under tensor parallelism: routers are whole on every rank, or made whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.demo_model import demo_model
from tests.vllm.conftest import Adapter, World

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "examples").glob("*/adapter"))
NEW_TOKENS = 12

Requests = Sequence[tuple[list[int], Path | None]]


def generate(base: Path, requests: Requests, out: Path, *, ranks: int) -> list[list[int]]:
    job = {
        "llm": {
            "model": str(base),
            "dtype": "float32",
            "enforce_eager": True,
            "enable_lora": True,
            "max_loras": 4,
            "max_lora_rank": 64,
            "max_model_len": 256,
            "tensor_parallel_size": ranks,
        },
        "requests": [(prompt, folder and str(folder)) for prompt, folder in requests],
        "new_tokens": NEW_TOKENS,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.generate", str(out)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    tokens: list[list[int]] = json.loads(out.read_text())
    return tokens


def test_two_ranks_of_a_tiny_base(
    world: World, prompt: Callable[[int], list[int]], tmp_path: Path
) -> None:
    everyone = [*world.adapters, Adapter(world.base, world.model)]
    jobs = [(prompt(length), adapter) for adapter in everyone for length in (1, 21)]
    requests = [(ids, None if a.folder == world.base else a.folder) for ids, a in jobs]
    want = [adapter.answer(ids, NEW_TOKENS) for ids, adapter in jobs]
    assert generate(world.base, requests, tmp_path / "out", ranks=2) == want


def test_three_ranks_of_the_real_base(tmp_path: Path) -> None:
    """Its 9 heads divide by 3 and by nothing else."""
    base = Path(demo_model())
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer("The capital of France is")["input_ids"]
    want = []
    for folder in (*SAMPLES, None):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if folder is not None:
            attach_checkpoint(model, read_checkpoint(folder))
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
            )
        want.append(out[0, len(ids) :].tolist())
    assert len({tuple(tokens) for tokens in want}) > 2
    requests: Requests = [(ids, folder) for folder in (*SAMPLES, None)]
    assert generate(base, requests, tmp_path / "out", ranks=3) == want
