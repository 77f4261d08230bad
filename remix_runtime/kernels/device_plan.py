"""Which rows of a step belong to which slot, as device tensors of fixed shapes.

Made once per step (`triton_plan.plan_from_slots`), shared by all layers; nothing of it is known to
the host but the shapes, so that a CUDA graph may hold it. The tokens of one slot are cut into
*tiles*, of `FEW` tokens for decoding and of `MANY` for prompts; a tile without tokens has slot -1.

Shape suffixes: T tokens, C tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FEW = 16
"""Tokens of a small tile: the least that a tensor core's product has."""
MANY = 64
"""Tokens of a large one: the least that Hopper's warp group product has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """The tensors of one step. Views of the same buffers where it was made into such."""

    slot_T: Tensor
    """int32, -1 for the base model and for whatever is no slot."""
    order_T: Tensor
    """int32: the tokens that have a slot, slot by slot, in their order; the rest is undefined."""
    few_C3: Tensor
    """int32 (slot, first position in `order_T`, tokens) of each tile of at most `FEW`."""
    many_C3: Tensor
    """The same of each tile of at most `MANY`."""
    num_slots: int
    max_adapters: int
    """The most slots that can have tokens, as far as the host knows; for the choice of kernels."""

    @classmethod
    def empty(
        cls, num_tokens: int, num_slots: int, device: torch.device | str, max_adapters: int
    ) -> DevicePlan:
        """Uninitialised, with room for `num_tokens`."""

        def ints(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        return cls(
            slot_T=ints(num_tokens),
            order_T=ints(num_tokens),
            few_C3=ints(max_tiles(num_tokens, max_adapters, FEW), 3),
            many_C3=ints(max_tiles(num_tokens, max_adapters, MANY), 3),
            num_slots=num_slots,
            max_adapters=max_adapters,
        )

    def first(self, num_tokens: int, max_adapters: int) -> DevicePlan:
        """The part of the buffers for a step of `num_tokens`, at the same addresses."""
        assert num_tokens <= len(self.slot_T), (num_tokens, len(self.slot_T))
        assert max_adapters <= self.max_adapters
        return DevicePlan(
            slot_T=self.slot_T[:num_tokens],
            order_T=self.order_T[:num_tokens],
            few_C3=self.few_C3[: max_tiles(num_tokens, max_adapters, FEW)],
            many_C3=self.many_C3[: max_tiles(num_tokens, max_adapters, MANY)],
            num_slots=self.num_slots,
            max_adapters=max_adapters,
        )


def max_tiles(num_tokens: int, max_adapters: int, size: int) -> int:
    """The most tiles that `num_tokens` tokens of `num_adapters` adapters can be cut into."""
    adapters = min(num_tokens, max_adapters)
    return (num_tokens - adapters) // size + adapters
