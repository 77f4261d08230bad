"""Counts which experts a model's tokens activate: the load that `training.json` has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from remix_runtime.adapter.layers import RemixLinear
from remix_runtime.adapter.parity import run_prompt
from remix_runtime.contracts import TrainedLoad


def count_load(
    model: nn.Module, layers: Mapping[str, RemixLinear], sequences: Iterable[Sequence[int]]
) -> TrainedLoad:
    """How often the tokens of `sequences` (token ids, none of them empty) activate each expert of
    `layers`, which are attached to `model`, by the deterministic top-k."""
    tokens = 0
    counts: dict[str, Tensor] = {
        name: torch.zeros(len(layer.router_nD), dtype=torch.int64)
        for name, layer in sorted(layers.items())
    }
    for sequence in sequences:
        _, routes, _ = run_prompt(model, layers, torch.tensor(sequence, dtype=torch.int64))
        tokens += len(sequence)
        for name, counts_n in counts.items():
            counts_n += torch.bincount(routes[name].flatten(), minlength=len(counts_n))
    modules = {name: counts_n.tolist() for name, counts_n in counts.items()}
    return TrainedLoad(tokens=tokens, modules=modules)
