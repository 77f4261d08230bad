"""The kernels in C: float32 on the CPU, the fast path there.

A row of the output has the same bits whatever else is in the batch and at every number of
threads; see `native/linear.c` and `native/mixture.c` for how.

Shape suffixes as in `kernels/mixture.py`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from remix_runtime.kernels import native
from remix_runtime.kernels.huge_pages import Arena
from remix_runtime.kernels.mixture import Batch, MixtureWeights
from remix_runtime.kernels.panels import GROUP, pack, pack_int8

_pointer, _int64, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int

_weights = Arena()
"""The layers of a model are packed one after the other and dropped together."""


class _Slot(ctypes.Structure):
    """`Slot` of `native/mixture.c`."""

    _fields_ = [
        ("a", _pointer),
        ("b", _pointer),
        ("counts", _pointer),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("r", ctypes.c_int32),
        ("bf16", ctypes.c_int32),
        ("weight", ctypes.c_float),
    ]


class _Linear(ctypes.Structure):
    """`Linear` of `native/kernels.h`."""

    _fields_ = [
        ("panels", _pointer),
        ("bias", _pointer),
        ("in_features", _int64),
        ("out_features", _int64),
        ("type", ctypes.c_int32),
    ]


TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
"""How weights are stored, as `native/kernels.h` numbers it."""


class _Functions:
    """The library's functions with their argument types declared."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self.linear = _declare(lib.remix_linear, *[_pointer] * 3, _int64, _int)
        self.mixture_add = _declare(
            lib.remix_mixture_add,
            *[_pointer] * 4,
            _int64,
            *[_pointer] * 2,
            *[_int64] * 5,
            *[_int] * 2,
        )
        self.panel = int(lib.remix_linear_panel())
        assert lib.remix_linear_group() == GROUP


def _declare(function: Callable[..., None], *argtypes: type) -> Callable[..., None]:
    function.argtypes, function.restype = argtypes, None  # type: ignore[attr-defined]
    return function


@functools.cache
def _functions() -> _Functions:
    lib = native.lib()
    assert lib is not None, "callers ask `available` first"
    return _Functions(lib)


def available() -> bool:
    return native.lib() is not None


class PackedLinear:
    """y = W x + b in float32, with W stored once in the order in which the kernel reads it: in the
    type that it has, or in 8 bits (`panels.quantize`).

    Whatever the type, y has the bits of float32 weights of the same numbers.
    """

    def __init__(
        self, weight_OD: Tensor, bias_O: Tensor | None = None, *, int8: bool = False
    ) -> None:
        self.out_features, self.in_features = weight_OD.shape
        functions = _functions()
        self._function = functions.linear
        P = functions.panel
        self.panels = (pack_int8 if int8 else pack)(weight_OD.detach(), P, _weights)
        self.bias_O: Tensor | None = None
        if bias_O is not None:
            self.bias_O = torch.zeros(len(self.panels) * P)
            self.bias_O[: self.out_features] = bias_O.detach()
        self._struct = _Linear(
            self.panels.data_ptr(),
            None if self.bias_O is None else self.bias_O.data_ptr(),
            self.in_features,
            self.out_features,
            TYPES[self.panels.dtype],
        )
        self.native_address = ctypes.addressof(self._struct)

    def __call__(self, x_TD: Tensor) -> Tensor:
        """float32 [..., D] to float32 [..., O]."""
        x_TD = x_TD.contiguous()
        assert x_TD.shape[-1] == self.in_features
        assert x_TD.dtype == torch.float32
        y_TO = torch.empty((*x_TD.shape[:-1], self.out_features))
        self._function(
            self.native_address,
            x_TD.data_ptr(),
            y_TO.data_ptr(),
            x_TD.numel() // self.in_features,
            torch.get_num_threads(),
        )
        return y_TO


@dataclass(slots=True)
class KeptSizes:
    """What is known of the scratch of several tables that share it, until a slot of one changes."""

    longest: tuple[int, int] | None = None
    """The largest of their `scratch_size`, each number by itself."""


class NativeMixtureTable:
    """The adapters of one layer by slot, and the call that adds them to a step's tokens."""

    def __init__(self, num_slots: int, in_features: int, out_features: int) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.slots: list[MixtureWeights | None] = [None] * num_slots
        self._table = (_Slot * num_slots)()
        self.native_address = ctypes.addressof(self._table)
        self.kept_sizes = KeptSizes()
        self._max_m = self._max_k = 0
        self._add = _functions().mixture_add

    @property
    def scratch_size(self) -> tuple[int, int]:
        """Row lengths that `Batch.scratch` must have for this layer."""
        return self._max_m, self._max_k

    def set(self, slot: int, weights: MixtureWeights) -> None:
        assert (weights.in_features, weights.out_features) == (self.in_features, self.out_features)
        assert weights.lanes, "made before the native library was there"
        is_bf16 = weights.a.dtype == torch.bfloat16
        counts_n = weights.counts_n
        counts = None if counts_n is None else counts_n.data_ptr()
        pointers = weights.a.data_ptr(), weights.b.data_ptr(), counts
        self._change(
            slot,
            weights,
            _Slot(*pointers, weights.n, weights.k, weights.r, is_bf16, weights.routing_weight),
        )

    def clear(self, slot: int) -> None:
        self._change(slot, None, _Slot())

    def _change(self, slot: int, weights: MixtureWeights | None, row: _Slot) -> None:
        self.kept_sizes.longest = None
        self.slots[slot] = weights
        self._table[slot] = row
        self._max_m = max((w.num_rows for w in self.slots if w), default=0)
        self._max_k = max((w.k for w in self.slots if w), default=0)

    def add(
        self, y_TO: Tensor, x_TD: Tensor, batch: Batch, routes_Tk: Tensor | None = None
    ) -> None:
        """y += the mixture of each token's slot, in place. `routes_Tk` (int32, k at least the
        largest top_k of the table) receives the experts, ascending, padded with -1."""
        if not batch.adapted or not self._max_k:
            if routes_Tk is not None:
                routes_Tk.fill_(-1)
            return
        h_Tm, picks_Tk = batch.scratch(self._max_m, self._max_k)
        if routes_Tk is not None:
            assert routes_Tk.shape[1] >= self._max_k
            assert routes_Tk.dtype == torch.int32
            assert routes_Tk.is_contiguous()
            picks_Tk = routes_Tk
        assert x_TD.is_contiguous()
        assert y_TO.stride(1) == 1
        assert x_TD.dtype == y_TO.dtype == torch.float32
        assert x_TD.shape == (batch.num_tokens, self.in_features)
        assert y_TO.shape == (batch.num_tokens, self.out_features)
        self._add(
            self.native_address,
            batch.runs_address,
            x_TD.data_ptr(),
            y_TO.data_ptr(),
            y_TO.stride(0),
            h_Tm.data_ptr(),
            picks_Tk.data_ptr(),
            len(batch.runs),
            self.in_features,
            self.out_features,
            h_Tm.shape[1],
            picks_Tk.shape[1],
            batch.counted,
            torch.get_num_threads(),
        )
