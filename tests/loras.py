"""Plain LoRAs as PEFT itself writes them, in all the ways in which it names modules and scales."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.models import ATTENTION, MLP, tiny_model

LORAS: Mapping[str, tuple[dict[str, Any], torch.dtype]] = {
    "plain": ({"r": 4, "lora_alpha": 24, "target_modules": list(MLP)}, torch.float32),
    "rslora": (
        {"r": 5, "lora_alpha": 9, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        torch.float32,
    ),
    "patterns": (
        {
            "r": 3,
            "lora_alpha": 11,
            "target_modules": ["down_proj", "gate_proj", "o_proj"],
            "rank_pattern": {"o_proj": 7, r"^model\.layers\.1\.mlp\.(down|gate)_proj": 2},
            "alpha_pattern": {"layers.0.mlp.gate_proj": 31, r".*\.down_proj": 13.5},
        },
        torch.float32,
    ),
    "expression": (
        {
            "r": 8,
            "lora_alpha": 40,
            "target_modules": r"model\.layers\.\d+\.(self_attn\.[kv]_proj|mlp\.(up|down)_proj)",
            "exclude_modules": r".*layers\.0\..*down_proj",
        },
        torch.float16,
    ),
    "layers": (
        {
            "r": 6,
            "lora_alpha": 60,
            "target_modules": [*MLP, *ATTENTION, "c_attn"],
            "exclude_modules": ["up_proj"],
            "layers_to_transform": [1],
            "layers_pattern": "layers",
        },
        torch.float32,
    ),
    "all-linear": ({"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}, torch.bfloat16),
}
"""Name to PEFT's settings and the type of the tensors in the file."""


def write_lora(
    folder: Path,
    family: str,
    settings: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
) -> Path:
    """A random LoRA, B included, on a tiny model. Returns `folder`."""
    config = LoraConfig(**{"init_lora_weights": False, "task_type": "CAUSAL_LM", **settings})
    with torch.random.fork_rng(devices=[]), _pefts_own_warning():
        torch.manual_seed(seed)
        model = get_peft_model(tiny_model(family), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder)
    return folder


def with_lora(family: str, folder: Path) -> PreTrainedModel:
    """The tiny model with the LoRA as PEFT reads and computes it: the readable truth."""
    with _pefts_own_warning():
        model: PreTrainedModel = PeftModel.from_pretrained(tiny_model(family), folder)
    return model.eval()


@contextmanager
def _pefts_own_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield
