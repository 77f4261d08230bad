"""The small operations of a transformer layer, fused: norm and gated activation.

With few tokens a step is bound by the number of operations, so each of these is one call. They
follow transformers' formulas. CPU float32 takes the native path where it exists, everything else
PyTorch's; in both a row's result depends on that row alone, in the native one bit for bit.

Shape suffixes: D row width, F feed-forward width; `...` is any leading shape.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from remix_runtime.kernels import native


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """x / sqrt(mean(x²) + eps) · (offset + weight) over the last dimension of x [..., D].

    `offset` is 1 for Gemma's norms, whose product is rounded to x's dtype after it is taken.
    """
    functions = _native()
    if functions is not None and x.dtype is torch.float32 is weight_D.dtype and x.is_cpu:
        width = weight_D.shape[0]
        if (stride := _row_stride(x, width)) is None:
            return rms_norm(x.contiguous(), weight_D, eps, offset=offset)
        assert x.shape[-1] == width
        y = _empty(x)
        functions.rms_norm(
            x.data_ptr(), stride, x.numel() // width, width,
            weight_D.data_ptr(), eps, offset, y.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return y
    x_float = x.float()
    normed = x_float * torch.rsqrt(x_float.square().mean(-1, keepdim=True) + eps)
    if offset == 0.0:
        return weight_D * normed.to(x.dtype)
    return (normed * (offset + weight_D.float())).to(x.dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, both [..., F]; slices of one fused projection need no copy."""
    y = _native_act_mul(0, gate, up)
    return F.silu(gate) * up if y is None else y


def gelu_tanh_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) · up with the tanh form of gelu (`gelu_pytorch_tanh`), both [..., F]."""
    y = _native_act_mul(1, gate, up)
    return F.gelu(gate, approximate="tanh") * up if y is None else y


class _Functions(NamedTuple):
    rms_norm: Any
    act_mul: Any


@cache
def _native() -> _Functions | None:
    library = native.lib()
    if library is None:
        return None
    pointer, number, real, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    functions = _Functions(library.remix_rms_norm, library.remix_act_mul)
    rows = [pointer, number]
    functions.rms_norm.argtypes = [*rows, number, number, pointer, real, real, pointer, count]
    functions.act_mul.argtypes = [count, *rows, *rows, number, number, pointer, count]
    for function in functions:
        function.restype = None
    return functions


def _row_stride(x: Tensor, width: int) -> int | None:
    """The step from row to row of x [..., width], or None where rows have no single one."""
    if x.is_contiguous():
        return width
    one_loop = x.stride(-1) == 1 and x.numel() == x.shape[-2] * width
    return x.stride(-2) if one_loop else None


def _empty(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _native_act_mul(gelu: int, gate: Tensor, up: Tensor) -> Tensor | None:
    functions = _native()
    if functions is None or not (gate.dtype is torch.float32 is up.dtype and gate.is_cpu):
        return None
    assert gate.shape == up.shape
    width = gate.shape[-1]
    gate_stride, up_stride = _row_stride(gate, width), _row_stride(up, width)
    if gate_stride is None or up_stride is None:
        return _native_act_mul(gelu, gate.contiguous(), up.contiguous())
    y = _empty(gate)
    functions.act_mul(
        gelu, gate.data_ptr(), gate_stride, up.data_ptr(), up_stride,
        gate.numel() // width, width, y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y
