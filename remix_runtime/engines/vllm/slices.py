"""The mixtures of a linear of vLLM, which may be several linears of the checkpoint in one:
gate and up, or query, key and value. Each is a slice of the output with a router of its own.

Shape suffixes: T tokens, D inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from remix_runtime.engines.vllm.tokens import StepTokens
from remix_runtime.kernels import MixtureTable, MixtureWeights, make_table
from remix_runtime.kernels.mixture import MAX_TOP_K, Reduce
from remix_runtime.kernels.torch_path import TorchMixtureTable

if TYPE_CHECKING:
    from remix_runtime.kernels.triton_table import Pending, TritonMixtureTable


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
        self.names = ("",) * len(slices)
        """The modules of the checkpoint that the slices stand for."""
        self._reduce = reduce
        self._ends = tuple(accumulate(slices))
        self._stacked: TritonMixtureTable | None = None
        self._tables: list[MixtureTable | TorchMixtureTable] = []
        if device.type == "cuda":
            from remix_runtime.kernels.triton_table import TritonMixtureTable

            self._stacked = TritonMixtureTable(
                num_slots,
                in_features,
                slices,
                device=device,
                dtype=dtype,
                max_rows=max_rows,
                max_experts=max_experts,
            )
            self.wants_plain = True
            return
        self._tables = [
            TorchMixtureTable(num_slots, in_features, width)
            if reduce is not None
            else make_table(num_slots, in_features, width, device=device, dtype=dtype)
            for width in slices
        ]
        self.wants_plain = any(isinstance(table, TorchMixtureTable) for table in self._tables)

    def set(self, slot: int, position: int, weights: MixtureWeights) -> None:
        if self._stacked is not None:
            self._stacked.set(slot, weights, position)
        else:
            self._tables[position].set(slot, weights)

    def clear(self, slot: int) -> None:
        for table in self._tables if self._stacked is None else [self._stacked]:
            table.clear(slot)

    def begin(self, x_TD: Tensor, step: StepTokens) -> Pending | None:
        """Starts, on a GPU, the part of `add` that needs no y, beside the base product. None where
        there is nothing to start."""
        if self._stacked is None or self._reduce is not None:
            return None
        return self._stacked.begin(x_TD, step.plan(len(x_TD)))

    def finish(self, y_TO: Tensor, x_TD: Tensor, step: StepTokens, begun: Pending | None) -> None:
        """The rest of `add`."""
        if begun is None:
            self.add(y_TO, x_TD, step)
        else:
            assert self._stacked is not None
            self._stacked.finish(y_TO, begun)

    def add(self, y_TO: Tensor, x_TD: Tensor, step: StepTokens) -> None:
        if self._stacked is not None:
            self._stacked.add(y_TO, x_TD, step.plan(len(x_TD)), reduce=self._reduce)
            return
        batch = step.batch(len(x_TD))
        if not batch.adapted:
            return
        wants_routes, start = step.wants_routes, 0
        for name, table, end in zip(self.names, self._tables, self._ends, strict=True):
            y_part = y_TO[:, start:end]
            routes_Tk = None
            if wants_routes:
                routes_Tk = torch.empty(len(x_TD), MAX_TOP_K, dtype=torch.int32)
            if isinstance(table, TorchMixtureTable):
                table.add(y_part, x_TD, batch, routes_Tk, reduce=self._reduce)
            else:
                table.add(y_part, x_TD, batch, routes_Tk)
            if routes_Tk is not None:
                step.saw(name, routes_Tk)
            start = end
