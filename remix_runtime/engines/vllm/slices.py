"""The mixtures of a linear of vLLM, which may be several linears of the checkpoint in one:
gate and up, or query, key and value. Each is a slice of the output with a router of its own.

Shape suffixes: T tokens, D inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from remix_runtime.engines.vllm.tokens import StepTokens
from remix_runtime.kernels import MixtureWeights, make_table
from remix_runtime.kernels.mixture import Reduce
from remix_runtime.kernels.torch_path import TorchMixtureTable


class SlicedTable:
    """By slot and slice. With `reduce`, x is this process's part of the inputs."""

    def __init__(
        self,
        num_slots: int,
        in_features: int,
        slices: Sequence[int],
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_rows: int,
        max_experts: int,
        reduce: Reduce | None = None,
    ) -> None:
        self._reduce = reduce
        self._ends = tuple(accumulate(slices))
        self._tables = [
            TorchMixtureTable(num_slots, in_features, width)
            if reduce is not None
            else make_table(num_slots, in_features, width, device=device, dtype=dtype)
            for width in slices
        ]
        self.wants_plain = any(isinstance(table, TorchMixtureTable) for table in self._tables)

    def set(self, slot: int, position: int, weights: MixtureWeights) -> None:
        self._tables[position].set(slot, weights)

    def clear(self, slot: int) -> None:
        for table in self._tables:
            table.clear(slot)

    def add(self, y_TO: Tensor, x_TD: Tensor, step: StepTokens) -> None:
        batch = step.batch(len(x_TD))
        if not batch.adapted:
            return
        start = 0
        for table, end in zip(self._tables, self._ends, strict=True):
            y_part = y_TO[:, start:end]
            if isinstance(table, TorchMixtureTable):
                table.add(y_part, x_TD, batch, reduce=self._reduce)
            else:
                table.add(y_part, x_TD, batch)
            start = end
