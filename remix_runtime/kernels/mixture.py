"""What the mixture kernels work on: one layer's adapter, and which tokens belong to which slot.

Shape suffixes: T packed tokens, D input width, O output width; per adapter n experts, k activated,
r rank, m = n·r + n rows of A with the router's below, j = n·r rows of Bᵀ; R runs; L layers,
S = T·k selections.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint.types import DEFAULT_LIMITS, LayerWeights
from remix_runtime.kernels import native
from remix_runtime.kernels.device_plan import DevicePlan
from remix_runtime.kernels.huge_pages import Arena

Reduce = Callable[[Tensor], Tensor]
"""Router logits that are sums over a part of the inputs, to their sums over all of them: the
all-reduce of a linear layer whose inputs are spread over devices."""

MAX_TOP_K = DEFAULT_LIMITS.num_experts
"""The largest top_k of an adapter, and so the width of tensors of routes."""

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
    """Bᵀ."""
    routing_weight: float
    n: int
    k: int
    r: int
    in_features: int
    out_features: int
    lanes: int
    """0: plain float32, a [m, D] and b [j, O]. Else tiles as `native/mixture.c` reads them, for
    vectors of that many floats; bfloat16 where that loses nothing, for it is half to read."""
    counts_n: Tensor | None = None
    """int64 on the CPU, where tables there add how often tokens select each expert."""

    @classmethod
    def from_layer(
        cls,
        layer: LayerWeights,
        top_k: int,
        routing_weight: float,
        *,
        plain: bool = False,
    ) -> MixtureWeights:
        """Stacks and lays out the tensors of a checkpoint's layer, on the CPU.

        `plain` is what other devices want, see `to`; it is also the layout without a compiler.
        """
        n, r, D = layer.a_nrD.shape
        a_nrD, b_nOr, router_nD = (
            tensor.detach().cpu().float() for tensor in (layer.a_nrD, layer.b_nOr, layer.router_nD)
        )
        lib = None if plain else native.lib()
        if lib is None:
            lanes = 0
            a = torch.cat([a_nrD.flatten(0, 1), router_nD])
            b = b_nOr.transpose(1, 2).flatten(0, 1).contiguous()
        else:
            lanes = int(lib.remix_vector_lanes())
            a, b = _tiled_a(a_nrD, router_nD, lanes), _tiled_b(b_nOr)
            if all(torch.equal(tensor.bfloat16().float(), tensor) for tensor in (a, b)):
                a, b = _interleaved(a, 2 * lanes), _interleaved(b, 2 * lanes)
        return cls(
            a=a,
            b=b,
            routing_weight=routing_weight,
            n=n,
            k=top_k,
            r=r,
            in_features=D,
            out_features=b_nOr.shape[1],
            lanes=lanes,
        )

    def to(self, device: torch.device) -> MixtureWeights:
        """The weights on another device; on the CPU the object itself."""
        if device.type == "cpu":
            return self
        assert not self.lanes, "the native layout is the CPU's own"
        return replace(self, a=self.a.to(device), b=self.b.to(device))

    def moved(self, arena: Arena) -> MixtureWeights:
        """The weights in the memory of `arena`."""
        return replace(self, a=_moved(self.a, arena), b=_moved(self.b, arena))

    @property
    def num_rows(self) -> int:
        """Rows of A with the router's, padding included."""
        return self.a.numel() // _ceil(self.in_features, max(self.lanes, 1))

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def counting(self, counts_n: Tensor) -> MixtureWeights:
        """The same weights, whose selections are counted in `counts_n`."""
        assert counts_n.shape == (self.n,)
        assert counts_n.dtype == torch.int64
        assert counts_n.is_contiguous()
        return replace(self, counts_n=counts_n)

    def plain(self) -> tuple[Tensor, Tensor]:
        """A with the router [m, D] and Bᵀ [j, O] in float32."""
        if not self.lanes:
            return self.a, self.b
        n, r, lanes = self.n, self.r, self.lanes
        a, b = self.a, self.b
        if a.dtype == torch.bfloat16:
            a, b = (_interleaved_back(tensor, 2 * lanes) for tensor in (a, b))
        rows_D = a.view(-1, -(-self.in_features // lanes), ROW_TILE, lanes).transpose(1, 2)
        rows_D = rows_D.flatten(0, 1).flatten(1)[:, : self.in_features]
        experts_D = rows_D[: n * _ceil(r, ROW_TILE)].view(n, -1, self.in_features)[:, :r]
        router_nD = rows_D[n * _ceil(r, ROW_TILE) :][:n]
        b_nrO = b.view(n, -1, r, OUTPUT_TILE).transpose(1, 2).flatten(2)[..., : self.out_features]
        return torch.cat([experts_D.flatten(0, 1), router_nD]), b_nrO.flatten(0, 1)


def _moved(tensor: Tensor, arena: Arena) -> Tensor:
    return arena.zeros(*tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _ceil(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _tiled_a(a_nrD: Tensor, router_nD: Tensor, lanes: int) -> Tensor:
    """[tiles of 8 rows, D / lanes, 8, lanes]."""
    n, r, D = a_nrD.shape
    experts = n * _ceil(r, ROW_TILE)
    rows_D = a_nrD.new_zeros(experts + _ceil(n, ROW_TILE), _ceil(D, lanes))
    rows_D[:experts].view(n, -1, rows_D.shape[1])[:, :r, :D] = a_nrD
    rows_D[experts : experts + n, :D] = router_nD
    return rows_D.view(-1, ROW_TILE, rows_D.shape[1] // lanes, lanes).transpose(1, 2).contiguous()


def _tiled_b(b_nOr: Tensor) -> Tensor:
    """[n, an odd number of tiles of outputs, r, outputs of a tile]."""
    n, out_features, r = b_nOr.shape
    tiles = -(-out_features // OUTPUT_TILE) | 1
    padded = b_nOr.new_zeros(n, tiles * OUTPUT_TILE, r)
    padded[:, :out_features] = b_nOr
    return padded.view(n, tiles, OUTPUT_TILE, r).transpose(2, 3).contiguous()


def _interleaved(tensor: Tensor, width: int) -> Tensor:
    """bfloat16, the two halves of every `width` values interleaved."""
    return tensor.view(-1, 2, width // 2).transpose(1, 2).bfloat16().contiguous()


def _interleaved_back(tensor: Tensor, width: int) -> Tensor:
    return tensor.view(-1, width // 2, 2).transpose(1, 2).float().contiguous()


@dataclass(slots=True)
class Batch:
    """The packed tokens of one step, in runs of neighbours that share a slot.

    Made once per step and shared by all layers. Not for two threads at a time: it also owns the
    scratch memory of the kernels.
    """

    runs: tuple[tuple[int, int, int], ...]
    """(first token, end, slot) with slot -1 for the base model; they partition the tokens."""
    runs_address: int = field(init=False, repr=False)
    """Where native code finds the runs: int32 [R, 3]."""
    num_tokens: int = field(init=False)
    counted: bool
    """Whether the selections of its tokens are added to `MixtureWeights.counts_n`."""
    selections: dict[int, list[tuple[Tensor, Tensor]]] = field(init=False, repr=False)
    """By a run's first token: the counters [n] of each layer and what its tokens selected, [T, k].
    Noted by tables that would take long to count in every layer."""
    _numbers: array[int] = field(init=False, repr=False)
    adapted: bool = field(init=False)
    """Whether any token has a slot."""
    h_Tm: Tensor = field(init=False, repr=False)
    picks_Tk: Tensor = field(init=False, repr=False)
    plan: DevicePlan | None = field(init=False, repr=False)
    """The plan of a device with kernels of its own; the first layer that needs it makes it."""

    def __init__(self, runs: Sequence[tuple[int, int, int]], *, counted: bool = True) -> None:
        self.runs = tuple(runs)
        self.counted = counted
        self.selections = {}
        position = 0
        for start, end, _ in self.runs:
            assert start == position < end, f"runs must partition the tokens: {self.runs}"
            position = end
        self._numbers = array("i", chain.from_iterable(self.runs))
        self.runs_address, _ = self._numbers.buffer_info()
        self.num_tokens = position
        self.adapted = any(slot >= 0 for _, _, slot in self.runs)
        self.h_Tm = torch.empty(0, 0)
        self.picks_Tk = torch.empty(0, 0, dtype=torch.int32)
        self.plan = None

    @property
    def runs_R3(self) -> Tensor:  # noqa: N802
        """The runs, int32 on the CPU."""
        return torch.tensor(self.runs, dtype=torch.int32).reshape(-1, 3)

    def slots(self) -> Tensor:
        """The slot of each token, int32 on the CPU."""
        start_R, end_R, slot_R = self.runs_R3.unbind(1)
        return slot_R.repeat_interleave(end_R - start_R)

    def count(self) -> None:
        """Adds what is noted in `selections` to the counters, at the end of a step."""
        for layers in self.selections.values():
            picks_LS = torch.stack([selection_Tk for _, selection_Tk in layers]).flatten(1)
            new_Ln = picks_LS.new_zeros(len(layers), len(layers[0][0]))
            new_Ln.scatter_add_(1, picks_LS, torch.ones_like(picks_LS))
            for (counts_n, _), new_n in zip(layers, new_Ln.unbind(), strict=True):
                counts_n += new_n
        self.selections.clear()

    def scratch(self, m: int, k: int) -> tuple[Tensor, Tensor]:
        """Uninitialised float32 [T, >= m] and int32 [T, >= k], kept for the next layer."""
        if self.h_Tm.shape[1] < m:
            self.h_Tm = torch.empty(self.num_tokens, m)
        if self.picks_Tk.shape[1] < k:
            self.picks_Tk = torch.empty(self.num_tokens, k, dtype=torch.int32)
        return self.h_Tm, self.picks_Tk
