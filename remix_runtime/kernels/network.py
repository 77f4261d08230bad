"""The forward pass of a Llama-like model in one native call; see `native/network.c`.

The call runs the same kernels in the same order as the modules it stands for; only the rotation of
queries and keys, which is PyTorch's there, rounds otherwise. What it saves is the time between
them, which at one token is as long as the output head.

Shape suffixes: T tokens, S tokens whose logits are wanted, V vocabulary, D hidden width, F
feed-forward width, H query heads, G key-value heads, d head width, r rotated width.
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
from remix_runtime.kernels.cpu import TYPES, KeptSizes, NativeMixtureTable, PackedLinear
from remix_runtime.kernels.mixture import Batch

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
_MOST_PROJECTIONS = 3
"""As in `native/kernels.h`."""

_pointer, _int64, _float, _int32 = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_float,
    ctypes.c_int32,
)


class Projection(ctypes.Structure):
    """A base linear and the mixtures beside it: `Projection` of `native/kernels.h`."""

    _fields_ = (
        ("linear", _pointer),
        ("slots", _pointer),
    )


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, Projection) for name in PROJECTIONS),
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


class _Network(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("embedding", "blocks", "norm", "frequencies", "head")),
        *((name, _int64) for name in ("num_blocks", "D", "r")),
        ("embedding_type", _int32),
        ("eps", _float),
        ("rotary_scale", _float),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("ids", "positions", "wanted", "attention", "runs")),
        *((name, _pointer) for name in ("x", "cos", "sin", "norm", "q", "k", "v", "o")),
        *((name, _pointer) for name in ("gate", "up", "rows", "picks")),
        *((name, _int64) for name in ("T", "S", "R", "m", "top")),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """What is around the blocks, and the blocks. All tensors are float32 but for the table."""

    embedding_VD: Tensor
    """float32, bfloat16 or float16."""
    blocks: Sequence[BlockSpec]
    norm_D: Tensor
    eps: float
    head: PackedLinear
    frequencies: Tensor
    """[r / 2], radians per position."""
    rotary_scale: float


class NativeNetwork:
    """Token ids to logits, float32 on the CPU."""

    def __init__(self, spec: NetworkSpec, kv: PagedKV) -> None:
        library = native.lib()
        assert library is not None
        assert kv.is_native
        self._function = library.remix_forward
        self._function.argtypes = [_pointer, _pointer, _pointer]
        self._function.restype = None
        self._kv = kv
        addresses = kv.native_addresses()
        blocks = [_block(each, kv) for each, kv in zip(spec.blocks, addresses, strict=True)]
        self._blocks = (_Block * len(blocks))(*blocks)
        self._spec = spec  # keeps every tensor alive that a struct points to
        assert spec.embedding_VD.is_contiguous()
        self._vocabulary, width = spec.embedding_VD.shape
        rotated = 2 * len(spec.frequencies)
        self._struct = _Network(
            spec.embedding_VD.data_ptr(),
            ctypes.addressof(self._blocks),
            spec.norm_D.data_ptr(),
            spec.frequencies.data_ptr(),
            spec.head.native_address,
            *(len(blocks), width, rotated),
            TYPES[spec.embedding_VD.dtype],
            spec.eps,
            spec.rotary_scale,
        )
        self._address = ctypes.addressof(self._struct)
        self._tables = [table for each in spec.blocks for table in each.tables.values()]
        # Where each of a step's activations starts in the scratch memory, in floats per token.
        linears = spec.blocks[0].linears
        widths = [width, rotated, rotated]
        widths += [linears[name].out_features for name in ("o", "q", "k", "v")]
        widths += [linears["o"].in_features]
        widths += [linears[name].out_features for name in ("gate", "up")]
        self._offsets = list(accumulate(widths, initial=0))
        self._scratch = torch.empty(0)
        self._sizes = KeptSizes()
        for table in self._tables:
            table.kept_sizes = self._sizes

    def __call__(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        wanted: Sequence[int],
        attention: AttentionBatch,
        batch: Batch,
    ) -> Tensor:
        """Logits [S, V] of the `wanted` ones of T tokens, in ascending order."""
        assert batch.counted, "what is not counted is recorded, module by module"
        assert 0 <= min(ids) <= max(ids) < self._vocabulary
        T, S = len(ids), len(wanted)
        m, top = self._mixture_sizes() if batch.adapted else (0, 0)
        # Kept from step to step: the system would clear fresh pages of it every time.
        needed = T * (self._offsets[-1] + _MOST_PROJECTIONS * (m + top))
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed)
        start = self._scratch.data_ptr()
        buffers = [start + 4 * T * offset for offset in self._offsets]
        numbers = (_int32 * (2 * T + S))(*ids, *positions, *wanted)
        first = ctypes.addressof(numbers)
        step = _Step(
            *(first, first + 4 * T, first + 8 * T),
            attention.native_address,
            batch.runs_address,
            *buffers,
            buffers[-1] + 4 * T * _MOST_PROJECTIONS * m,
            *(T, S, len(batch.runs), m, top),
            attention.threads,
        )
        logits_SV = torch.empty(S, self._spec.head.out_features)
        self._function(self._address, ctypes.addressof(step), logits_SV.data_ptr())
        return logits_SV

    def _mixture_sizes(self) -> tuple[int, int]:
        """The longest rows of the mixtures' scratch: kept, for there are hundreds of tables."""
        if self._sizes.longest is None:
            sizes = [table.scratch_size for table in self._tables]
            self._sizes.longest = max(m for m, _ in sizes), max(k for _, k in sizes)
        return self._sizes.longest


def _block(spec: BlockSpec, kv_address: int) -> _Block:
    norms = (spec.attention_norm_D, spec.mlp_norm_D, spec.q_norm_d, spec.k_norm_d)
    return _Block(
        *(projection(spec.linears[name], spec.tables[name]) for name in PROJECTIONS),
        *(None if norm is None else norm.data_ptr() for norm in norms),
        kv_address,
        spec.heads,
        spec.window or NO_WINDOW,
        spec.eps,
        spec.scale,
    )


def projection(linear: PackedLinear, table: NativeMixtureTable) -> Projection:
    """Both must outlive it."""
    return Projection(linear.native_address, table.native_address)
