"""The selection and y += ω Σ B A x as Triton kernels, from the partial sums of `triton_shrink`.

Every program selects for itself: the top-k of a few logits costs less than another launch.

A launch of a step that decodes is a chain of memory latencies more than it is bytes. So loads are
issued as early as their addresses are known: y, Bᵀ and the sums before the selection. With `PDL`
(programmatic dependent launch) a program starts while the launch before still runs and waits for
it only where it reads what that one makes; y and the weights are older.

Shape suffixes: T tokens, G slices, S slots, N experts, M rows of A and of Bᵀ, P splits of D, O all
slices' outputs, C tiles; of a program: I tokens, J rows, o outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from remix_runtime.kernels.triton_select import (
    adapter_numbers,
    chosen_bits,
    load_logits,
    store_routes,
    sum_splits,
)


@triton.jit
def expand_rows(
    y_TO, h_TGPM, rows_TGM, b_SMO, meta_SG3, weight_SG, columns_G2, slot_T, y_stride,
    G, M, b_stride,
    SPLITS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, blocks of outputs, slices): reads Bᵀ of the chosen experts only. `shrink_rows`
    has selected: `rows_TGM` are the rows, and `h_TGPM` has the sums of these."""
    t = tl.program_id(0).to(tl.int64)
    block, g = tl.program_id(1), tl.program_id(2)
    slot = tl.load(slot_T + t)
    column, width = tl.load(columns_G2 + 2 * g), tl.load(columns_G2 + 2 * g + 1)
    if slot < 0:
        return
    n, k, r = adapter_numbers(meta_SG3, slot, g, G)
    weight = tl.load(weight_SG + slot * G + g)
    if ALIGNED:
        column, width = tl.multiple_of(column, 16), tl.multiple_of(width, 16)
    if (block * WIDTH < width) & (n > 0):
        o = block * WIDTH + tl.arange(0, WIDTH)
        y = y_TO + t * y_stride + column + o
        y_o = tl.load(y, mask=o < width, other=0.0).to(tl.float32)
        if PDL:
            gdc_wait()
        h_rows = h_TGPM + (t * G + g) * SPLITS * M
        b_rows = b_SMO + slot.to(tl.int64) * M * b_stride + column + o[None, :]
        p = tl.arange(0, PADDED)
        sum_o = tl.zeros([WIDTH], tl.float32)
        for first in tl.range(0, k * r, ROWS, num_stages=1):
            j_J = first + tl.arange(0, ROWS)
            live_J = j_J < k * r
            row_J = tl.load(rows_TGM + (t * G + g) * M + j_J, mask=live_J, other=0)
            b_Jo = tl.load(
                b_rows + row_J.to(tl.int64)[:, None] * b_stride,
                mask=live_J[:, None] & (o < width)[None, :],
                other=0.0,
            )
            h_PJ = tl.load(
                h_rows + p[:, None] * M + j_J[None, :],
                mask=(p < SPLITS)[:, None] & live_J[None, :],
                other=0.0,
            )
            h_J = tl.sum(h_PJ, axis=0)
            sum_o += tl.sum(h_J[:, None] * b_Jo.to(tl.float32), axis=0)
        y_o += weight * sum_o
        tl.store(y, y_o.to(y_TO.dtype.element_ty), mask=o < width)


@triton.jit
def gate_tiles(
    z_TGPN, h_TGPM, gated_TGM, meta_SG3, weight_SG, tiles_C3, order_T,
    routes_TGk, routes_T, routes_G, num_routed, G, M,
    Z_SPLITS: tl.constexpr, SPLITS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, ROUTES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, 1, slices): ω A x of the chosen experts and 0 of the others, for prompts,
    where a tile has too many blocks of outputs to select in each."""
    if PDL:
        gdc_launch_dependents()
    tile = tiles_C3 + 3 * tl.program_id(0)
    slot = tl.load(tile)
    first, count = tl.load(tile + 1), tl.load(tile + 2)
    if slot < 0:
        return
    g = tl.program_id(2)
    i = tl.arange(0, TILE)
    t_I = tl.load(order_T + first + i, mask=i < count, other=0).to(tl.int64)
    n, k, r = adapter_numbers(meta_SG3, slot, g, G)
    weight = tl.load(weight_SG + slot * G + g)
    if n > 0:
        if PDL:
            gdc_wait()
        z_IPN = z_TGPN + (t_I * G + g) * Z_SPLITS * N
        z_IN = load_logits(z_IPN, i < count, N, Z_SPLITS)
        h_IJ = _sums(h_TGPM, t_I, i < count, 0, G, g, M, ROWS, SPLITS)
        chosen_I = chosen_bits(z_IN, n, k, N)
        if ROUTES:
            if g < num_routed:
                store_routes(routes_TGk, t_I, i < count, chosen_I, g, routes_T, routes_G, N)
        for start in tl.range(0, n * r, ROWS, num_stages=1):
            j = start + tl.arange(0, ROWS)
            gated_IJ = _gate(h_IJ, chosen_I, j, n * r, r, weight).to(gated_TGM.dtype.element_ty)
            gated = gated_TGM + (t_I[:, None] * G + g) * M + j[None, :]
            tl.store(gated, gated_IJ, mask=(i < count)[:, None] & (j < M)[None, :])
            h_IJ = _sums(h_TGPM, t_I, i < count, start + ROWS, G, g, M, ROWS, SPLITS)


@triton.jit
def expand_tiles(
    y_TO, z_TGPN, h_TGPM, b_SMO, meta_SG3, weight_SG, columns_G2, tiles_C3, order_T,
    routes_TGk, routes_T, routes_G, num_routed, y_stride, G, M, b_stride,
    Z_SPLITS: tl.constexpr, SPLITS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, GATED: tl.constexpr,
    SPARSE: tl.constexpr, ROUTES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of outputs, tiles, slices): one product with all rows of Bᵀ, those of other
    experts times 0. `GATED`: `h_TGPM` is what `gate_tiles` made. `SPARSE`: where a tile has one
    token, rows of other experts are not read."""
    tile = tiles_C3 + 3 * tl.program_id(1)
    slot = tl.load(tile)
    first, count = tl.load(tile + 1), tl.load(tile + 2)
    block, g = tl.program_id(0), tl.program_id(2)
    column, width = tl.load(columns_G2 + 2 * g), tl.load(columns_G2 + 2 * g + 1)
    if slot < 0:
        return
    i = tl.arange(0, TILE)
    t_I = tl.load(order_T + first + i, mask=i < count, other=0).to(tl.int64)
    n, k, r = adapter_numbers(meta_SG3, slot, g, G)
    weight = tl.load(weight_SG + slot * G + g)
    if ALIGNED:
        column, width = tl.multiple_of(column, 16), tl.multiple_of(width, 16)
    if (block * WIDTH < width) & (n > 0):
        o = block * WIDTH + tl.arange(0, WIDTH)
        b_rows = b_SMO + slot.to(tl.int64) * M * b_stride + column + o
        y = y_TO + t_I[:, None] * y_stride + column + o[None, :]
        inside_Io = (i < count)[:, None] & (o < width)[None, :]
        wanted = tl.full([], -1, tl.int64)  # experts whose rows are read: bits
        if SPARSE:
            wanted = tl.where(count > 1, wanted, 0)
        b_Jo = _rows(b_rows, 0, n * r, r, wanted, o < width, b_stride, ROWS, SPARSE)
        y_Io = tl.load(y, mask=inside_Io, other=0.0)
        if PDL:
            gdc_wait()
        if GATED:
            h_IJ = _gated(h_TGPM, t_I, i < count, 0, G, g, M, ROWS)
        else:
            z_IPN = z_TGPN + (t_I * G + g) * Z_SPLITS * N
            z_IN = load_logits(z_IPN, i < count, N, Z_SPLITS)
            h_IJ = _sums(h_TGPM, t_I, i < count, 0, G, g, M, ROWS, SPLITS)
            chosen_I = chosen_bits(z_IN, n, k, N)
            if ROUTES:
                if (block == 0) & (g < num_routed):
                    store_routes(routes_TGk, t_I, i < count, chosen_I, g, routes_T, routes_G, N)
            if SPARSE:
                if count == 1:
                    wanted = tl.sum(tl.where(i == 0, chosen_I, 0), axis=0)
                    b_Jo = _rows(b_rows, 0, n * r, r, wanted, o < width, b_stride, ROWS, SPARSE)
        sum_Io = tl.zeros([TILE, WIDTH], tl.float32)
        for start in tl.range(0, n * r, ROWS, num_stages=1):
            if not GATED:
                j = start + tl.arange(0, ROWS)
                h_IJ = _gate(h_IJ, chosen_I, j, n * r, r, weight)
            sum_Io = tl.dot(h_IJ.to(b_Jo.dtype), b_Jo, sum_Io, input_precision="ieee")
            next = start + ROWS
            b_Jo = _rows(b_rows, next, n * r, r, wanted, o < width, b_stride, ROWS, SPARSE)
            if GATED:
                h_IJ = _gated(h_TGPM, t_I, i < count, next, G, g, M, ROWS)
            else:
                h_IJ = _sums(h_TGPM, t_I, i < count, next, G, g, M, ROWS, SPLITS)
        tl.store(y, (y_Io.to(tl.float32) + sum_Io).to(y_TO.dtype.element_ty), mask=inside_Io)


@triton.jit
def _rows(
    b_rows, start, end, r, wanted, inside_o, b_stride, ROWS: tl.constexpr, SPARSE: tl.constexpr
):
    """Rows `start + [0, ROWS)` of Bᵀ; `SPARSE`: of the experts in `wanted` only."""
    j = start + tl.arange(0, ROWS)
    live_J = j < end
    if SPARSE:
        live_J &= ((wanted >> (j // r).to(tl.int64)) & 1) > 0
    pointers = b_rows[None, :] + j.to(tl.int64)[:, None] * b_stride
    return tl.load(pointers, mask=live_J[:, None] & inside_o[None, :], other=0.0)


@triton.jit
def _gated(gated_TGM, t_I, inside_I, start, G, g, M, ROWS: tl.constexpr):
    """Zeros behind the adapter's own rows."""
    j = start + tl.arange(0, ROWS)
    gated = gated_TGM + (t_I[:, None] * G + g) * M + j[None, :]
    return tl.load(gated, mask=inside_I[:, None] & (j < M)[None, :], other=0.0)


@triton.jit
def _sums(h_TGPM, t_I, inside_I, start, G, g, M, ROWS: tl.constexpr, SPLITS: tl.constexpr):
    """Anything behind the adapter's own rows, which no expert chooses: with a mask that ends
    where these do the compiler loads number by number."""
    j = start + tl.arange(0, ROWS)
    h = h_TGPM + (t_I[:, None] * G + g) * SPLITS * M + j[None, :]
    return sum_splits(h, inside_I[:, None] & (j < M)[None, :], M, SPLITS)


@triton.jit
def _gate(h_IJ, chosen_I, j, end, r, weight):
    """Not a product with 0 and 1: an infinite activation of an unselected expert is no NaN."""
    is_chosen_IJ = ((chosen_I[:, None] >> (j // r).to(tl.int64)[None, :]) & 1) > 0
    return tl.where(is_chosen_IJ & (j < end)[None, :], weight * h_IJ, 0.0)
