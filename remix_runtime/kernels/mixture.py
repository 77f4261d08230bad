"""What the mixture kernels work on: one layer's adapter, and which tokens belong to which slot.

Shape suffixes: T packed tokens, D input width, O output width; per adapter n experts, k activated,
r rank, m = n·r + n rows of A with the router's below, j = n·r rows of Bᵀ; R runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from remix_runtime.checkpoint.types import LayerWeights
from remix_runtime.kernels import native

OUTPUT_TILE = 64
"""P of `native/mixture.c`."""
ROW_TILE = 8
"""ROWS of `native/mixture.c`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureWeights:
    """One adapter's tensors at one linear layer, laid out for the backend of their device."""

    a: Tensor
    """The experts' A, expert by expert, then the router's rows: one product gives both."""
    b: Tensor
    """ω Bᵀ."""
    n: int
    k: int
    r: int
    in_features: int
    out_features: int
    lanes: int
    """0: plain float32, a [m, D] and b [j, O]. Else tiles as `native/mixture.c` reads them, for
    vectors of that many floats."""

    @classmethod
    def from_layer(
        cls,
        layer: LayerWeights,
        top_k: int,
        routing_weight: float,
        device: torch.device | str = "cpu",
    ) -> MixtureWeights:
        """Stacks, scales and lays out the tensors of a checkpoint's layer, on `device`."""
        n, r, D = layer.a_nrD.shape
        out_features = layer.b_nOr.shape[1]
        device = torch.device(device)
        a_nrD, router_nD = layer.a_nrD.to(device).float(), layer.router_nD.to(device).float()
        b_nrO = layer.b_nOr.to(device).float().mul(routing_weight).transpose(1, 2)
        lib = native.lib() if device.type == "cpu" else None
        if lib is None:
            a, b = torch.cat([a_nrD.flatten(0, 1), router_nD]), b_nrO.reshape(n * r, out_features)
            lanes = 0
        else:
            lanes = int(lib.remix_vector_lanes())
            rows_D = torch.cat([_pad(a_nrD, -2, ROW_TILE).flatten(0, 1), router_nD])
            rows_D = _pad(_pad(rows_D, -1, lanes), -2, ROW_TILE)
            a = rows_D.unflatten(0, (-1, ROW_TILE)).unflatten(-1, (-1, lanes)).transpose(1, 2)
            b_nrO = _pad(b_nrO, -1, OUTPUT_TILE)
            if b_nrO.shape[-1] // OUTPUT_TILE % 2 == 0:
                b_nrO = F.pad(b_nrO, (0, OUTPUT_TILE))
            b = b_nrO.unflatten(-1, (-1, OUTPUT_TILE)).transpose(1, 2)
        return cls(
            a=a.contiguous(),
            b=b.contiguous(),
            n=n,
            k=top_k,
            r=r,
            in_features=D,
            out_features=out_features,
            lanes=lanes,
        )

    @property
    def num_rows(self) -> int:
        """Rows of A with the router's, padding included."""
        return self.a.shape[0] * (ROW_TILE if self.lanes else 1)

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def plain(self) -> tuple[Tensor, Tensor]:
        """A with the router [m, D] and ω Bᵀ [j, O] in float32."""
        if not self.lanes:
            return self.a, self.b
        n, r = self.n, self.r
        rows_D = self.a.transpose(1, 2).flatten(2)[:, :, : self.in_features]
        router_tiles = -(-n // ROW_TILE)
        experts_D = rows_D[:-router_tiles].reshape(n, -1, self.in_features)[:, :r]
        router_nD = rows_D[-router_tiles:].flatten(0, 1)[:n]
        b_nrO = self.b.transpose(1, 2).flatten(2)[:, :, : self.out_features]
        return torch.cat([experts_D.flatten(0, 1), router_nD]), b_nrO.flatten(0, 1)


def _pad(x: Tensor, dim: int, multiple: int) -> Tensor:
    """Zeros behind dimension -1 or -2 up to a multiple."""
    missing = -x.shape[dim] % multiple
    return F.pad(x, (0, missing) if dim == -1 else (0, 0, 0, missing))


@dataclass(slots=True)
class Batch:
    """The packed tokens of one step, in runs of neighbours that share a slot.

    Made once per step and shared by all layers. Not for two threads at a time: it also owns the
    scratch memory of the kernels.
    """

    runs: tuple[tuple[int, int, int], ...]
    """(first token, end, slot) with slot -1 for the base model; they partition the tokens."""
    runs_R3: Tensor = field(init=False, repr=False)
    num_tokens: int = field(init=False)
    adapted: bool = field(init=False)
    """Whether any token has a slot."""
    h_Tm: Tensor = field(init=False, repr=False)
    picks_Tk: Tensor = field(init=False, repr=False)

    def __init__(self, runs: Sequence[tuple[int, int, int]]) -> None:
        self.runs = tuple(runs)
        position = 0
        for start, end, _ in self.runs:
            assert start == position < end, f"runs must partition the tokens: {self.runs}"
            position = end
        self.runs_R3 = torch.tensor(self.runs, dtype=torch.int32).reshape(-1, 3)
        self.num_tokens = position
        self.adapted = any(slot >= 0 for _, _, slot in self.runs)
        self.h_Tm = torch.empty(0, 0)
        self.picks_Tk = torch.empty(0, 0, dtype=torch.int32)

    def scratch(self, m: int, k: int) -> tuple[Tensor, Tensor]:
        """Uninitialised float32 [T, >= m] and int32 [T, >= k], kept for the next layer."""
        if self.h_Tm.shape[1] < m:
            self.h_Tm = torch.empty(self.num_tokens, m)
        if self.picks_Tk.shape[1] < k:
            self.picks_Tk = torch.empty(self.num_tokens, k, dtype=torch.int32)
        return self.h_Tm, self.picks_Tk
