"""The selection and y += ω Σ B A x as Triton kernels, from the partial sums of `triton_shrink`.

Every program selects for itself: the top-k of a few logits costs less than another launch.

Shape suffixes: T tokens, G slices, S slots, N experts, M rows of A and of Bᵀ, P splits of D, O all
slices' outputs, C tiles; of a program: I tokens, J rows, o outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from remix_runtime.kernels.triton_select import (
    adapter_numbers,
    chosen_bits,
    chosen_rows,
    store_routes,
    sum_splits,
)


@triton.jit
def expand_rows(
    y_TO, z_TGPN, h_TGPM, b_SMO, meta_SG3, weight_SG, columns_G2, slot_T,
    routes_TGk, routes_T, routes_G, num_routed, y_stride, G, M, b_stride,
    Z_SPLITS: tl.constexpr, SPLITS: tl.constexpr, PADDED: tl.constexpr, N: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, ROUTES: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, blocks of outputs, slices): reads Bᵀ of the chosen experts only."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_T + t)
    if slot < 0:
        return
    block, g = tl.program_id(1), tl.program_id(2)
    n, k, r = adapter_numbers(meta_SG3, slot, g, G)
    column, width = tl.load(columns_G2 + 2 * g), tl.load(columns_G2 + 2 * g + 1)
    if ALIGNED:
        column, width = tl.multiple_of(column, 16), tl.multiple_of(width, 16)
    if (block * WIDTH < width) & (n > 0):
        z_pointers = z_TGPN + (t * G + g) * Z_SPLITS * N + tl.arange(0, N)[None, :]
        z_1N = sum_splits(z_pointers, tl.arange(0, N)[None, :] < n, N, Z_SPLITS)
        chosen_1 = chosen_bits(z_1N, n, k, N)
        if ROUTES:
            if (block == 0) & (g < num_routed):
                t_1 = t + tl.zeros([1], tl.int64)
                store_routes(routes_TGk, t_1, t_1 >= 0, chosen_1, g, routes_T, routes_G, N)
        o = block * WIDTH + tl.arange(0, WIDTH)
        h_rows = h_TGPM + (t * G + g) * SPLITS * M
        b_rows = b_SMO + slot.to(tl.int64) * M * b_stride + column + o[None, :]
        y = y_TO + t * y_stride + column + o
        y_o = tl.load(y, mask=o < width, other=0.0).to(tl.float32)
        sum_o = tl.zeros([WIDTH], tl.float32)
        for first in tl.range(0, k * r, ROWS, num_stages=1):
            row_J, live_J = chosen_rows(chosen_1, first, k, r, N, ROWS)
            b_Jo = tl.load(
                b_rows + row_J.to(tl.int64)[:, None] * b_stride,
                mask=live_J[:, None] & (o < width)[None, :],
                other=0.0,
            )
            p = tl.arange(0, PADDED)
            h_PJ = tl.load(
                h_rows + p[:, None] * M + row_J[None, :],
                mask=(p < SPLITS)[:, None] & live_J[None, :],
                other=0.0,
            )
            h_J = tl.sum(h_PJ, axis=0)
            sum_o += tl.sum(h_J[:, None] * b_Jo.to(tl.float32), axis=0)
        y_o += tl.load(weight_SG + slot * G + g) * sum_o
        tl.store(y, y_o.to(y_TO.dtype.element_ty), mask=o < width)


@triton.jit
def gate_tiles(
    z_TGPN, h_TGPM, gated_TGM, meta_SG3, weight_SG, tiles_C3, order_T,
    routes_TGk, routes_T, routes_G, num_routed, G, M,
    Z_SPLITS: tl.constexpr, SPLITS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, ROUTES: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, 1, slices): ω A x of the chosen experts and 0 of the others, for prompts,
    where a tile has too many blocks of outputs to select in each."""
    tile = tiles_C3 + 3 * tl.program_id(0)
    slot = tl.load(tile)
    if slot < 0:
        return
    first, count = tl.load(tile + 1), tl.load(tile + 2)
    g = tl.program_id(2)
    n, k, r = adapter_numbers(meta_SG3, slot, g, G)
    i = tl.arange(0, TILE)
    t_I = tl.load(order_T + first + i, mask=i < count, other=0).to(tl.int64)
    if n > 0:
        chosen_I = _choose(z_TGPN, t_I, i < count, G, g, n, k, Z_SPLITS, N)
        if ROUTES:
            if g < num_routed:
                store_routes(routes_TGk, t_I, i < count, chosen_I, g, routes_T, routes_G, N)
        weight = tl.load(weight_SG + slot * G + g)
        for start in tl.range(0, n * r, ROWS, num_stages=1):
            j = start + tl.arange(0, ROWS)
            live_IJ = (i < count)[:, None] & (j < n * r)[None, :]
            h_IJ = _gated(h_TGPM, t_I, live_IJ, chosen_I, j, G, g, r, weight, M, SPLITS)
            gated = gated_TGM + (t_I[:, None] * G + g) * M + j[None, :]
            tl.store(gated, h_IJ.to(gated_TGM.dtype.element_ty), mask=live_IJ)


@triton.jit
def expand_tiles(
    y_TO, z_TGPN, h_TGPM, b_SMO, meta_SG3, weight_SG, columns_G2, tiles_C3, order_T,
    routes_TGk, routes_T, routes_G, num_routed, y_stride, G, M, b_stride,
    Z_SPLITS: tl.constexpr, SPLITS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, GATED: tl.constexpr,
    ROUTES: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of outputs, tiles, slices): one product with all rows of Bᵀ, those of other
    experts times 0. `GATED`: `h_TGPM` is what `gate_tiles` made."""
    tile = tiles_C3 + 3 * tl.program_id(1)
    slot = tl.load(tile)
    if slot < 0:
        return
    first, count = tl.load(tile + 1), tl.load(tile + 2)
    block, g = tl.program_id(0), tl.program_id(2)
    n, k, r = adapter_numbers(meta_SG3, slot, g, G)
    column, width = tl.load(columns_G2 + 2 * g), tl.load(columns_G2 + 2 * g + 1)
    if ALIGNED:
        column, width = tl.multiple_of(column, 16), tl.multiple_of(width, 16)
    i = tl.arange(0, TILE)
    t_I = tl.load(order_T + first + i, mask=i < count, other=0).to(tl.int64)
    if (block * WIDTH < width) & (n > 0):
        if not GATED:
            chosen_I = _choose(z_TGPN, t_I, i < count, G, g, n, k, Z_SPLITS, N)
            weight = tl.load(weight_SG + slot * G + g)
            if ROUTES:
                if (block == 0) & (g < num_routed):
                    store_routes(routes_TGk, t_I, i < count, chosen_I, g, routes_T, routes_G, N)
        o = block * WIDTH + tl.arange(0, WIDTH)
        b_rows = b_SMO + slot.to(tl.int64) * M * b_stride + column + o[None, :]
        y = y_TO + t_I[:, None] * y_stride + column + o[None, :]
        inside_Io = (i < count)[:, None] & (o < width)[None, :]
        y_Io = tl.load(y, mask=inside_Io, other=0.0)
        sum_Io = tl.zeros([TILE, WIDTH], tl.float32)
        for start in tl.range(0, n * r, ROWS, num_stages=1):
            j = start + tl.arange(0, ROWS)
            live_IJ = (i < count)[:, None] & (j < n * r)[None, :]
            if GATED:
                h = h_TGPM + (t_I[:, None] * G + g) * M + j[None, :]
                h_IJ = tl.load(h, mask=live_IJ, other=0.0)
            else:
                h_IJ = _gated(h_TGPM, t_I, live_IJ, chosen_I, j, G, g, r, weight, M, SPLITS)
            b_Jo = tl.load(
                b_rows + j.to(tl.int64)[:, None] * b_stride,
                mask=(j < n * r)[:, None] & (o < width)[None, :],
                other=0.0,
            )
            sum_Io = tl.dot(h_IJ.to(b_Jo.dtype), b_Jo, sum_Io, input_precision="ieee")
        tl.store(y, (y_Io.to(tl.float32) + sum_Io).to(y_TO.dtype.element_ty), mask=inside_Io)


@triton.jit
def _choose(z_TGPN, t_I, inside_I, G, g, n, k, Z_SPLITS: tl.constexpr, N: tl.constexpr):
    e = tl.arange(0, N)
    z = z_TGPN + (t_I[:, None] * G + g) * Z_SPLITS * N + e[None, :]
    z_IN = sum_splits(z, inside_I[:, None] & (e < n)[None, :], N, Z_SPLITS)
    return chosen_bits(z_IN, n, k, N)


@triton.jit
def _gated(h_TGPM, t_I, live_IJ, chosen_I, j, G, g, r, weight, M, SPLITS: tl.constexpr):
    """Not a product with 0 and 1: an infinite activation of an unselected expert is no NaN."""
    h = h_TGPM + (t_I[:, None] * G + g) * SPLITS * M + j[None, :]
    h_IJ = sum_splits(h, live_IJ, M, SPLITS)
    is_chosen_IJ = ((chosen_I[:, None] >> (j // r).to(tl.int64)[None, :]) & 1) > 0
    return tl.where(is_chosen_IJ & live_IJ, weight * h_IJ, 0.0)
