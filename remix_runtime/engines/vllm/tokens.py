"""Which tokens of vLLM's current step belong to which slot.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from itertools import groupby

from torch import Tensor

from remix_runtime.kernels import Batch


class StepTokens:
    """Shared by all layers of a model. `slots_T`: vLLM's own buffer, as long as a step can be;
    what it holds beyond the step's tokens is not initialised."""

    def __init__(self, slots_T: Tensor, *, num_slots: int) -> None:
        self.slots_T = slots_T
        self.num_slots = num_slots
        self._count = 0
        self._batch = Batch([])

    def begin(self, count: int) -> None:
        """The buffer holds the slots of `count` tokens. Not called for a step whose tokens and
        slots are those of the one before."""
        self._count = count
        self._batch = Batch(_runs(self.slots_T[:count].tolist()))

    def batch(self, num_tokens: int) -> Batch:
        """For the rows of a forward pass: a step is padded with rows of the base, and vLLM's
        warm-up takes fewer than it announced."""
        if num_tokens != self._batch.num_tokens:
            slots = self.slots_T[: min(self._count, num_tokens)].tolist()
            self._batch = Batch(_runs(slots + [-1] * (num_tokens - len(slots))))
        return self._batch


def _runs(slots: list[int]) -> list[tuple[int, int, int]]:
    runs, start = [], 0
    for slot, group in groupby(slots):
        end = start + sum(1 for _ in group)
        runs.append((start, end, slot))
        start = end
    return runs
