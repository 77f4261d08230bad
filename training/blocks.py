"""The blocks of a base, and which of them training changes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from remix_runtime.adapter.layers import Routed


@dataclass(frozen=True, slots=True)
class Blocks:
    """A model's blocks in the order in which it runs them."""

    below: tuple[nn.Module, ...]
    """Those below the first adapted one: they compute the same for every selection, and nothing
    flows back into them."""
    above: tuple[nn.Module, ...]
    """The first adapted block and all that follow."""


def blocks_of(model: PreTrainedModel) -> Blocks:
    """Splits the blocks of a model with an adapter in it. Where an adapted linear stands outside
    all blocks, none is below it."""
    found = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    inner = {m for block in found for m in block.modules() if m is not block}
    blocks = tuple(block for block in found if block not in inner)
    adapted = [block for block in blocks if routed_in(block)]
    within = sum(len(routed_in(block)) for block in adapted)
    if not adapted or within < len(routed_in(model)):
        return Blocks(below=(), above=blocks)
    first = blocks.index(adapted[0])
    return Blocks(below=blocks[:first], above=blocks[first:])


def routed_in(module: nn.Module) -> list[Routed]:
    """The adapted linears in a module."""
    return [m for m in module.modules() if isinstance(m, Routed)]
