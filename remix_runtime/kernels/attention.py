"""Causal attention of many sequences over paged keys and values.

`PagedKV` holds the memory of all layers, `AttentionBatch` says which rows of a step belong to
which sequence, and `PagedKV.attend` stores the step's keys and values and then attends.

Two paths stand behind this interface. The native one (CPU, float32) is batch-invariant bit for
bit: a row's result depends on its query, its sequence's keys and values and its position, not on
the batch, the chunks of the prefill, the page numbers or the number of threads. The PyTorch one
serves every other device and dtype and is the readable statement of the same thing; its sums are
as invariant as PyTorch's matrix products are.

Shape suffixes: T rows (tokens) of the step, S sequences, P pages per sequence, H query heads,
G key/value heads, R = H / G query heads per key/value head (query head h reads key/value head
h // R), d head width, n rows and L keys of each sequence of a group.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from remix_runtime.kernels import huge_pages, native

PAGE_TOKENS = 16

NO_WINDOW = 1 << 40
_MAX_NATIVE_HEAD_DIM = 1024  # a tile's state lives on its thread's stack


class _NativeBatch(ctypes.Structure):
    """`Batch` of attention.c."""

    _fields_ = (
        ("page_table", ctypes.c_void_p),
        ("first_row", ctypes.c_void_p),
        ("num_rows", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("num_sequences", ctypes.c_int64),
        ("page_table_stride", ctypes.c_int64),
    )


class _Group(NamedTuple):
    """Sequences that the PyTorch path computes together, as index tensors."""

    row_Sn: Tensor
    position_Sn: Tensor
    slot_SL: Tensor
    """Where the keys of positions 0, 1, ... are kept, in tokens from the start of page 0."""


class AttentionBatch:
    """Which rows of a step belong to which sequence, and where their keys are kept.

    Sequence s owns the rows `first_row[s] : first_row[s] + num_rows[s]`, at least one, which
    continue the `context[s]` tokens that earlier steps stored. Its position p is kept in page
    `pages[s][p // PAGE_TOKENS]`; entries behind the last used page are not read.
    """

    def __init__(
        self,
        first_row: Sequence[int],
        num_rows: Sequence[int],
        context: Sequence[int],
        pages: Sequence[Sequence[int]],
    ) -> None:
        count = len(first_row)
        for row, new, kept in zip(pages, num_rows, context, strict=True):
            assert len(row) * PAGE_TOKENS >= kept + new
        assert count == len(num_rows)
        assert min(num_rows) > 0
        assert min(context) >= 0
        assert min(first_row) >= 0
        self.first_row = first_row
        self.num_rows = num_rows
        self.context = context
        self.end_row = max(f + n for f, n in zip(first_row, num_rows, strict=True))
        self.threads = torch.get_num_threads()
        self._groups: list[_Group] | None = None
        self._numbers = (ctypes.c_int32 * (3 * count))(*first_row, *num_rows, *context)
        start, size = ctypes.addressof(self._numbers), 4 * count
        # Short rows are filled up with page 0, which is not read.
        width = max(map(len, pages))
        self._table = array("i")
        for row in pages:
            self._table.extend(row)
            self._table.extend(repeat(0, width - len(row)))
        table, _ = self._table.buffer_info()
        self._struct = _NativeBatch(table, start, start + size, start + 2 * size, count, width)
        self.native_address = ctypes.addressof(self._struct)

    def groups(self, device: torch.device) -> list[_Group]:
        """All sequences with one row as one group, every other sequence as its own."""
        if self._groups is None:
            decodes = [s for s, n in enumerate(self.num_rows) if n == 1]
            members = [[s] for s, n in enumerate(self.num_rows) if n > 1]
            if decodes:
                members.append(decodes)
            self._groups = [self._group(sequences, device) for sequences in members]
        return self._groups

    def _group(self, sequences: list[int], device: torch.device) -> _Group:
        n = self.num_rows[sequences[0]]
        first_S1 = torch.tensor([[self.first_row[s]] for s in sequences])
        context_S1 = torch.tensor([[self.context[s]] for s in sequences])
        new_n = torch.arange(n)
        # A shorter sequence repeats its last key, so that nothing outside its own memory is read;
        # the repeated keys are behind its position and get hidden.
        key_SL = torch.arange(int(context_S1.max()) + n).minimum(context_S1 + n - 1)
        page_SP = torch.frombuffer(self._table, dtype=torch.int32).view(len(self.first_row), -1)
        page_SL = page_SP[sequences].long().gather(1, key_SL // PAGE_TOKENS)
        return _Group(
            (first_S1 + new_n).to(device),
            (context_S1 + new_n).to(device),
            (page_SL * PAGE_TOKENS + key_SL % PAGE_TOKENS).to(device),
        )


class _LayerKV(Protocol):
    def attend(
        self,
        q_THd: Tensor,
        k_TGd: Tensor,
        v_TGd: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor: ...


class PagedKV:
    """Keys and values of all layers, in `num_pages` pages of `PAGE_TOKENS` tokens.

    `kv_heads` and `head_dim` are one number, or one per layer. Page numbers mean the same in
    every layer. Which page belongs to whom is the caller's business; a page needs no clearing.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        kv_heads: int | Sequence[int],
        head_dim: int | Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        use_native: bool = True,
    ) -> None:
        heads = [kv_heads] * num_layers if isinstance(kv_heads, int) else list(kv_heads)
        widths = [head_dim] * num_layers if isinstance(head_dim, int) else list(head_dim)
        device = torch.device(device)
        self.is_native = (
            use_native
            and device.type == "cpu"
            and dtype is torch.float32
            and max(widths) <= _MAX_NATIVE_HEAD_DIM
            and _native_attend() is not None
        )
        self.layers: list[_LayerKV] = [
            _NativeLayerKV(num_pages, g, d) if self.is_native
            else _TorchLayerKV(num_pages, g, d, dtype, device)
            for g, d in zip(heads, widths, strict=True)
        ]  # fmt: skip

    def native_addresses(self) -> list[int]:
        """Address of each layer's struct, for native code that calls attention itself."""
        assert self.is_native
        return [layer.address for layer in self.layers if isinstance(layer, _NativeLayerKV)]

    def attend(
        self,
        layer: int,
        q_THd: Tensor,
        k_TGd: Tensor,
        v_TGd: Tensor,
        batch: AttentionBatch,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Stores k and v in the pages of `layer` and returns the attention output [T, H, d].

        Query position i sees the keys j with `i - window < j <= i`. `scale` multiplies the scores;
        `softcap` c, where given, then turns a score x into c · tanh(x / c). Inputs may be strided;
        rows that belong to no sequence come back undefined.
        """
        return self.layers[layer].attend(q_THd, k_TGd, v_TGd, batch, scale, window, softcap)


def page_bytes(kv_heads: Sequence[int], head_dim: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes that one page takes over all layers, one element of each sequence per layer."""
    widths = zip(kv_heads, head_dim, strict=True)
    return sum(g * (d + _padded(d)) for g, d in widths) * PAGE_TOKENS * dtype.itemsize


def _padded(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


class _NativeLayer(ctypes.Structure):
    """`Layer` of attention.c."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("value_width", ctypes.c_int64),
    )


@cache
def _native_attend() -> Callable[..., None] | None:
    library = native.lib()
    if library is None:
        return None
    pointer, number, real, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    strided = [pointer, number, number]
    options = [real, number, real, count]
    function: Any = library.remix_attend
    function.argtypes = [pointer, pointer, number, *strided * 3, pointer, *options]
    function.restype = None
    return function  # type: ignore[no-any-return]


class _NativeLayerKV:
    def __init__(self, num_pages: int, kv_heads: int, head_dim: int) -> None:
        width = _padded(head_dim)
        self.kv_shape = (kv_heads, head_dim)
        self.keys = huge_pages.zeros(num_pages, kv_heads, head_dim, PAGE_TOKENS)
        self.values = huge_pages.zeros(num_pages, kv_heads, PAGE_TOKENS, width)
        self._struct = _NativeLayer(
            self.keys.data_ptr(), self.values.data_ptr(), kv_heads, head_dim, width
        )
        self.address = ctypes.addressof(self._struct)
        function = _native_attend()
        assert function is not None
        self._function = function

    def attend(
        self,
        q_THd: Tensor,
        k_TGd: Tensor,
        v_TGd: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        q_T, q_H, q_d = q_THd.stride()
        k_T, k_G, k_d = k_TGd.stride()
        v_T, v_G, v_d = v_TGd.stride()
        if not q_d == k_d == v_d == 1:
            return self.attend(
                q_THd.contiguous(), k_TGd.contiguous(), v_TGd.contiguous(), batch, scale, window,
                softcap,
            )  # fmt: skip
        T, H, d = q_THd.shape
        assert k_TGd.shape == v_TGd.shape == (T, *self.kv_shape)
        assert d == self.kv_shape[1]
        assert batch.end_row <= T
        o_THd = torch.empty_like(q_THd, memory_format=torch.contiguous_format)
        self._function(
            self.address, batch.native_address, H,
            q_THd.data_ptr(), q_T, q_H,
            k_TGd.data_ptr(), k_T, k_G,
            v_TGd.data_ptr(), v_T, v_G,
            o_THd.data_ptr(), scale, window or NO_WINDOW, softcap or 0.0, batch.threads,
        )  # fmt: skip
        return o_THd


class _TorchLayerKV:
    def __init__(
        self,
        num_pages: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_pages * PAGE_TOKENS, kv_heads, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def attend(
        self,
        q_THd: Tensor,
        k_TGd: Tensor,
        v_TGd: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        o_THd = torch.empty_like(q_THd, memory_format=torch.contiguous_format)
        for row_Sn, position_Sn, slot_SL in batch.groups(self.keys.device):
            new_slot_Sn = slot_SL.gather(1, position_Sn)
            self.keys[new_slot_Sn] = k_TGd[row_Sn]
            self.values[new_slot_Sn] = v_TGd[row_Sn]
            G, d = k_TGd.shape[1:]
            q_SnGRd = q_THd[row_Sn].view(*row_Sn.shape, G, -1, d).float()
            score_SGRnL = torch.einsum("sngrd,slgd->sgrnl", q_SnGRd, self.keys[slot_SL].float())
            score_SGRnL *= scale
            if softcap is not None:
                score_SGRnL = softcap * torch.tanh(score_SGRnL / softcap)
            behind_SnL = position_Sn[..., None] - torch.arange(
                slot_SL.shape[1], device=slot_SL.device
            )
            hidden_SnL = (behind_SnL < 0) | (behind_SnL >= (window or NO_WINDOW))
            score_SGRnL.masked_fill_(hidden_SnL[:, None, None], -torch.inf)
            weight_SGRnL = score_SGRnL.softmax(-1)
            o_SnGRd = torch.einsum("sgrnl,slgd->sngrd", weight_SGRnL, self.values[slot_SL].float())
            o_THd[row_Sn] = o_SnGRd.flatten(2, 3).to(o_THd.dtype)
        return o_THd
