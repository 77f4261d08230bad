"""Linear layers and the ReMix addition for the tokens of many adapters at once.

`make_linear` and `make_table` choose a backend; callers see only the protocols below. The backends:

- `cpu.py` with `native/*.c`: float32 on the CPU, where a C compiler was found
- `triton_table.py` over the other `triton_*.py`: CUDA
- `torch_path.py`: PyTorch, any device
- `reference.py`: the equations, token by token, for tests

Shape suffixes: T packed tokens, D input width, O output width, k activated experts.
"""

from __future__ import annotations

import importlib.util
from typing import Protocol

import torch
from torch import Tensor

from remix_runtime.kernels import cpu
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear
from remix_runtime.kernels.mixture import Batch, MixtureWeights
from remix_runtime.kernels.torch_path import TorchLinear, TorchMixtureTable

__all__ = [
    "Batch",
    "Linear",
    "MixtureTable",
    "MixtureWeights",
    "make_linear",
    "make_table",
]


class Linear(Protocol):
    """A frozen linear layer."""

    in_features: int
    out_features: int

    def __call__(self, x_TD: Tensor, /) -> Tensor:
        """[..., D] to a new [..., O]."""
        ...


class MixtureTable(Protocol):
    """The adapters of one linear layer, by slot."""

    in_features: int
    out_features: int

    def set(self, slot: int, weights: MixtureWeights) -> None: ...

    def clear(self, slot: int) -> None: ...

    def add(
        self, y_TO: Tensor, x_TD: Tensor, batch: Batch, routes_Tk: Tensor | None = None
    ) -> None:
        """Adds ω · sum of the selected experts to the rows of y, in place.

        Rows of the base model and of empty slots stay as they are. The selections of a counted
        batch are in `MixtureWeights.counts_n` after `Batch.count`, at the latest. `routes_Tk`,
        int32 with room for the largest top_k, receives the selected experts in ascending order,
        padded with -1.
        """
        ...


def make_linear(
    weight_OD: Tensor,
    bias_O: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    int8: bool = False,
) -> Linear:
    """The fastest linear layer for the weight's device and `dtype`, that of x and y: the weight's
    own by default. May copy the weight: drop it.

    Where `keeps_stored`, the weight may be of any of `STORED_TYPES` and is kept in it, or in 8 bits
    if `int8`; elsewhere it must have `dtype`.
    """
    if keeps_stored(weight_OD.device, dtype or weight_OD.dtype):
        return PackedLinear(weight_OD, bias_O, int8=int8)
    assert not int8
    return TorchLinear(weight_OD, bias_O)


def keeps_stored(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether linears that compute in `dtype` take weights of other types as they are stored."""
    return _is_native(device, dtype)


def make_table(
    num_slots: int,
    in_features: int,
    out_features: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MixtureTable:
    """An empty table for one layer; `dtype` is that of the layer's x and y."""
    device = torch.device(device)
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        from remix_runtime.kernels.triton_table import TritonMixtureTable

        return TritonMixtureTable(
            num_slots, in_features, [out_features], device=device, dtype=dtype
        )
    table = NativeMixtureTable if _is_native(device, dtype) else TorchMixtureTable
    return table(num_slots, in_features, out_features)


def _is_native(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" and dtype == torch.float32 and cpu.available()
