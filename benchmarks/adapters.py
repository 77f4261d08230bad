"""Random adapters with a strong effect, as checkpoint folders that the engine can load.

Shape suffixes: n experts, r LoRA rank, D input width, O output width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from benchmarks.shape import FEED_FORWARD, AdapterShape
from remix_runtime.adapter.checkpoint import (
    AdapterConfig,
    LayerWeights,
    routing_weight,
    write_checkpoint,
)
from remix_runtime.adapter.layers import base_shapes, target_shapes
from remix_runtime.base.config import read_config
from remix_runtime.base.model import check_base
from remix_runtime.base.weights import without_weights

README = "# Random adapter of the benchmark\n"


def empty_model(base: Path) -> PreTrainedModel:
    """The base without its weights: shapes only. Raises `ConfigError`."""
    return without_weights(read_config(check_base(str(base))))


def write_random_adapters(
    folder: Path,
    base: Path,
    shape: AdapterShape,
    count: int,
    targets: Sequence[str] = FEED_FORWARD,
) -> list[Path]:
    """Folders of `count` different adapters for the base, in `folder`. Raises `ConfigError`."""
    model = empty_model(base)
    folders = [folder / f"adapter-{seed}" for seed in range(count)]
    for seed, adapter in enumerate(folders):
        write_random_adapter(adapter, model, shape, targets, seed)
    return folders


def write_random_lora(folder: Path, model: nn.Module, rank: int) -> Path:
    """Writes a plain LoRA of PEFT's for the feed-forward linears of `model` (meta tensors suffice),
    its output about as large as W x. Returns `folder`."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (width_o, width_d) in target_shapes(base_shapes(model), FEED_FORWARD).items():
        a_rD = torch.randn(rank, width_d, generator=generator) / width_d**0.5
        b_Or = torch.randn(width_o, rank, generator=generator) / rank**0.5
        for part, tensor in (("lora_A", a_rD), ("lora_B", b_Or)):
            tensors[f"base_model.model.{name}.{part}.weight"] = tensor.bfloat16()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "benchmark",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(FEED_FORWARD),
        "bias": "none",
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def write_random_adapter(
    folder: Path, model: nn.Module, shape: AdapterShape, targets: Sequence[str], seed: int
) -> None:
    """Writes an adapter for `model` (meta tensors suffice) whose output is about as large as W x.

    Router logits have variance near 1 on inputs of unit size, so that all experts are used.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = routing_weight("rslora", top_k=shape.k, r=shape.r)
    # k experts, each of variance |B|^2 r, times the weight: the sum has the variance of its input.
    b_scale = 1.0 / (weight * (shape.k * shape.r) ** 0.5)
    layers = {}
    for name, (width_o, width_d) in target_shapes(base_shapes(model), targets).items():
        layers[name] = LayerWeights(
            a_nrD=torch.randn(shape.n, shape.r, width_d, generator=generator) / width_d**0.5,
            b_nOr=torch.randn(shape.n, width_o, shape.r, generator=generator) * b_scale,
            router_nD=torch.randn(shape.n, width_d, generator=generator) / width_d**0.5,
        )
    config = AdapterConfig(
        base_model_name_or_path="benchmark",
        num_experts=shape.n,
        top_k=shape.k,
        r=shape.r,
        routing_weight=weight,
        target_modules=tuple(targets),
    )
    # In bfloat16, as `remix train` writes them.
    write_checkpoint(folder, config, layers, readme=README, dtype=torch.bfloat16)
