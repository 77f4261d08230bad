"""Random adapters with a strong effect, as checkpoint folders that the engine can load.

Shape suffixes: n experts, r LoRA rank, D input width, O output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from remix_runtime.adapter.checkpoint import (
    AdapterConfig,
    LayerWeights,
    routing_weight,
    write_checkpoint,
)
from remix_runtime.adapter.layers import base_shapes, target_shapes
from remix_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """n experts of rank r, of which a token activates k."""

    n: int
    k: int
    r: int

    @classmethod
    def parse(cls, text: str) -> AdapterShape:
        """From "n,k,r". Raises `ConfigError`."""
        try:
            n, k, r = (int(part) for part in text.split(","))
        except ValueError:
            raise ConfigError(
                f"adapter shape: found {text!r}, expected n,k,r as in 8,4,8"
            ) from None
        if not (1 <= k <= n and r >= 1):
            raise ConfigError(f"adapter shape: found {text!r}, expected 1 <= k <= n and r >= 1")
        return cls(n, k, r)


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
    write_checkpoint(
        folder,
        config,
        layers,
        readme="# Random adapter of the benchmark\n",
        dtype=torch.bfloat16,  # as `remix train` writes them
    )
