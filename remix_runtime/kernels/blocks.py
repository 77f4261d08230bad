"""All decoder blocks of a Llama-like model in one native call; see `native/block.c`.

The call runs the same kernels in the same order as the modules it stands for, and rounds the
rotation of queries and keys, which is PyTorch's there, once less. What it saves is the time
between them, which at one token is as long as the small ones.

Shape suffixes: T tokens, D hidden width, F feed-forward width, H query heads, G key-value heads,
d head width, r rotated width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from remix_runtime.kernels import native
from remix_runtime.kernels.attention import NO_WINDOW, AttentionBatch, PagedKV
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear
from remix_runtime.kernels.mixture import Batch

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")

_pointer, _int64, _float, _int32 = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_float,
    ctypes.c_int32,
)


class _Projection(ctypes.Structure):
    _fields_ = (
        ("linear", _pointer),
        ("slots", _pointer),
    )


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, _Projection) for name in PROJECTIONS),
        ("attention_norm", _pointer),
        ("mlp_norm", _pointer),
        ("q_norm", _pointer),
        ("k_norm", _pointer),
        ("kv", _pointer),
        ("heads", _int64),
        ("window", _int64),
        ("eps", _float),
        ("scale", _float),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("attention", _pointer),
        ("runs", _pointer),
        ("cos", _pointer),
        ("sin", _pointer),
        *((name, _pointer) for name in ("norm", "q", "k", "v", "o", "gate", "up", "rows", "picks")),
        *((name, _int64) for name in ("T", "D", "r", "R", "m", "top")),
        ("adapted", _int32),
        ("threads", _int32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpec:
    """What one block is made of. Projections are keyed as `PROJECTIONS`."""

    linears: dict[str, PackedLinear]
    tables: dict[str, NativeMixtureTable]
    attention_norm_D: Tensor
    mlp_norm_D: Tensor
    q_norm_d: Tensor | None
    k_norm_d: Tensor | None
    heads: int
    window: int | None
    eps: float
    scale: float


class NativeBlocks:
    """x_TD after all blocks, float32 on the CPU."""

    def __init__(self, specs: Sequence[BlockSpec], kv: PagedKV) -> None:
        library = native.lib()
        assert library is not None
        assert kv.is_native
        self._function = library.remix_blocks
        self._function.argtypes = [_pointer, _int64, _pointer, _pointer]
        self._function.restype = None
        self._specs = list(specs)  # keeps every tensor alive that a struct points to
        self._kv = kv
        addresses = kv.native_addresses()
        blocks = [_block(spec, kv) for spec, kv in zip(specs, addresses, strict=True)]
        self._blocks = (_Block * len(blocks))(*blocks)
        # Where each of a step's activations starts in the scratch memory, in floats per token.
        linears = specs[0].linears
        widths = [linears[name].out_features for name in ("o", "q", "k", "v")]
        widths += [linears["o"].in_features]
        widths += [linears[name].out_features for name in ("gate", "up")]
        self._offsets = list(accumulate(widths, initial=0))
        self._scratch = torch.empty(0)

    def __call__(
        self, x_TD: Tensor, cos_Tr: Tensor, sin_Tr: Tensor, attention: AttentionBatch, batch: Batch
    ) -> None:
        """Changes `x_TD` in place."""
        assert x_TD.is_contiguous()
        assert cos_Tr.is_contiguous()
        assert sin_Tr.is_contiguous()
        assert x_TD.dtype == cos_Tr.dtype == sin_Tr.dtype == torch.float32
        assert batch.counted, "what is not counted is recorded, module by module"
        T, D = x_TD.shape
        m = top = 0
        if batch.adapted:
            sizes = [table.scratch_size for spec in self._specs for table in spec.tables.values()]
            m, top = max(m for m, _ in sizes), max(k for _, k in sizes)
        # Kept from step to step: the system would clear fresh pages of it every time.
        needed = T * (self._offsets[-1] + m + top)
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed)
        start = self._scratch.data_ptr()
        buffers = [start + 4 * T * offset for offset in self._offsets]
        picks = buffers[-1] + 4 * T * m
        step = _Step(
            attention.native_address,
            batch.runs_R3.data_ptr(),
            cos_Tr.data_ptr(),
            sin_Tr.data_ptr(),
            *buffers,
            picks,
            *(T, D, cos_Tr.shape[1], len(batch.runs), m, top),
            m > 0,
            attention.threads,
        )
        self._function(
            ctypes.addressof(self._blocks),
            len(self._blocks),
            ctypes.addressof(step),
            x_TD.data_ptr(),
        )


def _block(spec: BlockSpec, kv_address: int) -> _Block:
    norms = (spec.attention_norm_D, spec.mlp_norm_D, spec.q_norm_d, spec.k_norm_d)
    return _Block(
        *(_projection(spec.linears[name], spec.tables[name]) for name in PROJECTIONS),
        *(None if norm is None else norm.data_ptr() for norm in norms),
        kv_address,
        spec.heads,
        spec.window or NO_WINDOW,
        spec.eps,
        spec.scale,
    )


def _projection(linear: PackedLinear, table: NativeMixtureTable) -> _Projection:
    return _Projection(linear.native_address, table.native_address)
