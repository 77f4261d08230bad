"""vLLM engines in this process, with ReMix adapters or vLLM's own LoRA, and requests to them.

Import it before vLLM, which reads the environment at import.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["VLLM_PLUGINS"] = ""  # ours is registered by hand: when, and whether it is installed

import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

Adapters = Sequence[LoRARequest | None]
"""Requests take them in turn; None is the base alone."""


def lora_options(rank: int, slots: int, cpu_slots: int) -> dict[str, Any]:
    """Options of an engine for adapters of up to that rank on the feed-forward linears."""
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": cpu_slots,
        "max_lora_rank": next(size for size in (8, 16, 32, 64, 128) if size >= rank),
        "lora_target_modules": ["gate_up_proj", "down_proj"],
    }


def named(folders: Sequence[Path], first_id: int = 1) -> list[LoRARequest]:
    return [LoRARequest(f"a{i}", i, str(f)) for i, f in enumerate(folders, start=first_id)]


def submit(llm: LLM, count: int, prompt_tokens: int, new_tokens: int, adapters: Adapters) -> Any:
    """Adds greedy requests with random prompts; the engine whose `step` answers them."""
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    for number in range(count):
        llm.llm_engine.add_request(
            f"{time.monotonic_ns()}-{number}",
            {"prompt_token_ids": torch.randint(10, 32_000, (prompt_tokens,)).tolist()},
            params,
            lora_request=adapters[number % len(adapters)],
        )
    return llm.llm_engine
