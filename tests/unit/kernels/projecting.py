"""`remix_project`, the call that native networks make of base linears and mixtures."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from remix_runtime.kernels import Batch, native
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear
from remix_runtime.kernels.network import Projection, projection

Pair = tuple[PackedLinear, NativeMixtureTable]


def project(
    pairs: Sequence[Pair],
    x_TD: Tensor,
    batch: Batch,
    threads: int,
    following: Sequence[Pair] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """What each of the pairs makes of x, and the experts that its tokens selected, int32 [T, k]."""
    library = native.lib()
    assert library is not None
    T = len(x_TD)
    outputs = [torch.full((T, linear.out_features), float("nan")) for linear, _ in pairs]
    sizes = [table.scratch_size for _, table in pairs]
    m, k = max(m for m, _ in sizes), max(k for _, k in sizes)
    h = torch.empty(len(pairs), T, m)
    picks = torch.full((len(pairs), T, k), -1, dtype=torch.int32)
    own = (Projection * len(pairs))(*(projection(*pair) for pair in pairs))
    then = (Projection * len(following))(*(projection(*pair) for pair in following))
    runs_R3 = batch.runs_R3
    library.remix_project(
        own,
        ctypes.c_int64(len(pairs)),
        then,
        ctypes.c_int64(len(following)),
        ctypes.c_void_p(runs_R3.data_ptr()),
        ctypes.c_int64(len(runs_R3)),
        ctypes.c_void_p(x_TD.data_ptr()),
        (ctypes.c_void_p * len(pairs))(*(y_TO.data_ptr() for y_TO in outputs)),
        ctypes.c_int64(T),
        ctypes.c_void_p(h.data_ptr()),
        ctypes.c_void_p(picks.data_ptr()),
        ctypes.c_int64(m),
        ctypes.c_int64(k),
        ctypes.c_int(threads),
    )
    return outputs, list(picks)
