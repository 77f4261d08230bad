"""What the mixture kernels work on: one layer's adapter, and which tokens belong to which slot.

Shape suffixes: T packed tokens, D input width, O output width; per adapter n experts, k activated,
r rank, m = n·r + n rows of A with the router below, j = n·r rows of Bᵀ; R runs; C tiles of P
outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from remix_runtime.checkpoint.types import LayerWeights

CPU_TILE = 64
"""P on the CPU: a tile of Bᵀ for n·r = 64 rows is half of an L1 cache."""


@dataclass(frozen=True, slots=True)
class MixtureWeights:
    """One adapter's tensors at one linear layer, float32, laid out for the kernels."""

    a_mD: Tensor
    """The experts' A, expert by expert, then the n router rows: one product gives both."""
    b_CjP: Tensor
    """ω Bᵀ in tiles of P outputs, the last one padded with zeros. On CUDA one tile of O."""
    n: int
    k: int
    r: int
    out_features: int

    @classmethod
    def from_layer(
        cls,
        layer: LayerWeights,
        top_k: int,
        routing_weight: float,
        device: torch.device | str = "cpu",
    ) -> MixtureWeights:
        """Stacks, scales and tiles the tensors of a checkpoint's layer, on `device`."""
        n, r, D = layer.a_nrD.shape
        out_features = layer.b_nOr.shape[1]
        device = torch.device(device)
        a_mD = torch.cat([layer.a_nrD.reshape(n * r, D), layer.router_nD]).to(device).float()
        tile = CPU_TILE if device.type == "cpu" else out_features
        tiles = -(-out_features // tile)
        b_jO = layer.b_nOr.to(device).float().mul(routing_weight).transpose(1, 2).flatten(0, 1)
        b_jO = torch.nn.functional.pad(b_jO, (0, tiles * tile - out_features))
        b_CjP = b_jO.view(n * r, tiles, tile).transpose(0, 1).contiguous()
        return cls(
            a_mD=a_mD.contiguous(), b_CjP=b_CjP, n=n, k=top_k, r=r, out_features=out_features
        )

    @property
    def in_features(self) -> int:
        return self.a_mD.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.a_mD.nbytes + self.b_CjP.nbytes

    def untiled_b(self) -> Tensor:
        """ω Bᵀ as [n·r, O]."""
        return self.b_CjP.transpose(0, 1).flatten(1)[:, : self.out_features]


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
