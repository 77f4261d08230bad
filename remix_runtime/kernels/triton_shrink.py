"""Router logits and A x as Triton kernels: partial sums over spans of D, in float32.

A span's sum is written to its own place and whoever reads it adds the spans in order
(`triton_select.sum_splits`): no atomics, the same bits in every run. Router logits come from one
compiled kernel, `router_and_shrink`, whatever the batch, so a token's logits have the same bits
in every batch and form.

`PDL`: see `triton_expand`. Of the tensors that the launch before writes, `shrink_rows` reads
logits; `shrink_tiles` none, it waits so that whoever waits for it has waited for the logits too.

Shape suffixes: T tokens, D input width, G slices, S slots, N experts, M rows of A, P splits of D,
C tiles; of a program: I tokens, E experts, J rows of A, d a part of D.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from remix_runtime.kernels.triton_select import (
    adapter_numbers,
    chosen_bits,
    chosen_rows,
    load_logits,
    store_routes,
    sum_splits,
)


@triton.jit(do_not_specialize=["router_jobs"])
def router_and_shrink(
    x_TD, router_SGND, a_SGMD, meta_SG3, tiles_C3, order_T, z_TGPN, h_TGPM,
    D, G, N, M, router_jobs,
    SPLITS: tl.constexpr, SPAN: tl.constexpr, GROUP: tl.constexpr, EXPERTS: tl.constexpr,
    H_SPLITS: tl.constexpr, H_SPAN: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, jobs, slices): the first `router_jobs` programs of a tile and slice compute
    logits, each of a span of D and `EXPERTS` experts; the others A x, of a span and `ROWS` rows."""
    if PDL:
        gdc_launch_dependents()
    tile = tiles_C3 + 3 * tl.program_id(0)
    slot = tl.load(tile)
    first, count = tl.load(tile + 1), tl.load(tile + 2)
    if slot < 0:
        return
    job, g = tl.program_id(1), tl.program_id(2)
    place = slot.to(tl.int64) * G + g
    if job < router_jobs:
        split, block = job % SPLITS, job // SPLITS
        _router(
            x_TD, router_SGND + place * N * D, meta_SG3, slot, order_T + first, count, z_TGPN,
            D, G, N, g, split, block * EXPERTS, SPLITS, SPAN, GROUP, EXPERTS,
        )  # fmt: skip
    else:
        split, block = (job - router_jobs) % H_SPLITS, (job - router_jobs) // H_SPLITS
        _shrink_tile(
            x_TD, a_SGMD + place * M * D, meta_SG3, slot, order_T + first, count, h_TGPM,
            D, G, M, g, split, block * ROWS, H_SPLITS, H_SPAN, TILE, CHUNK, ROWS,
        )  # fmt: skip


@triton.jit
def shrink_tiles(
    x_TD, a_SGMD, meta_SG3, tiles_C3, order_T, h_TGPM,
    D, G, M,
    SPLITS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, splits · blocks of rows, slices): A x of all experts, for prompts."""
    if PDL:
        gdc_launch_dependents()
    tile = tiles_C3 + 3 * tl.program_id(0)
    slot = tl.load(tile)
    first, count = tl.load(tile + 1), tl.load(tile + 2)
    if slot < 0:
        return
    job, g = tl.program_id(1), tl.program_id(2)
    _shrink_tile(
        x_TD, a_SGMD + (slot.to(tl.int64) * G + g) * M * D, meta_SG3, slot, order_T + first,
        count, h_TGPM, D, G, M, g, job % SPLITS, job // SPLITS * ROWS,
        SPLITS, SPAN, TILE, CHUNK, ROWS,
    )  # fmt: skip
    if PDL:
        gdc_wait()


@triton.jit
def shrink_rows(
    x_TD, a_SGMD, meta_SG3, slot_T, z_TGPN, h_TGPM, rows_TGM,
    routes_TGk, routes_T, routes_G, num_routed, D, G, M,
    Z_SPLITS: tl.constexpr, SPLITS: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
    N: tl.constexpr, ROUTES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, splits · blocks of rows, slices): A x of each token's chosen experts, one
    sum after the other, and which rows of A and Bᵀ these are."""
    if PDL:
        gdc_launch_dependents()
    t = tl.program_id(0).to(tl.int64)
    job, g = tl.program_id(1), tl.program_id(2)
    split, first = job % SPLITS, job // SPLITS * ROWS
    slot = tl.load(slot_T + t)
    d = split * SPAN + tl.arange(0, SPAN)
    x_d = tl.load(x_TD + t * D + d, mask=d < D, other=0.0)
    if slot < 0:
        return
    n, k, r = adapter_numbers(meta_SG3, slot, g, G)
    if first < k * r:
        if PDL:
            gdc_wait()
        t_1 = t + tl.zeros([1], tl.int64)
        z_1PN = z_TGPN + (t_1 * G + g) * Z_SPLITS * N
        chosen_1 = chosen_bits(load_logits(z_1PN, t_1 >= 0, N, Z_SPLITS), n, k, N)
        row_J, live_J = chosen_rows(chosen_1, first, k, r, N, ROWS)
        a_rows = a_SGMD + (slot.to(tl.int64) * G + g) * M * D + row_J[:, None] * D
        a_Jd = tl.load(a_rows + d[None, :], mask=live_J[:, None] & (d < D)[None, :], other=0.0)
        j_J = first + tl.arange(0, ROWS)
        if split == 0:
            tl.store(rows_TGM + (t * G + g) * M + j_J, row_J, mask=live_J)
            if ROUTES:
                if (first == 0) & (g < num_routed):
                    store_routes(routes_TGk, t_1, t_1 >= 0, chosen_1, g, routes_T, routes_G, N)
        h_J = tl.sum(a_Jd.to(tl.float32) * x_d.to(tl.float32)[None, :], axis=1)
        tl.store(h_TGPM + ((t * G + g) * SPLITS + split) * M + j_J, h_J, mask=live_J)


@triton.jit
def sum_router(
    z_TGPN, z_TGN, meta_SG3, slot_T, G, SPLITS: tl.constexpr, N: tl.constexpr
):  # fmt: skip
    """Grid (tokens, slices): whole logits, 0 where there are none, for callers that add those of
    other devices before the top-k."""
    t, g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slot_T + t)
    e = tl.arange(0, N)
    z_N = tl.zeros([N], tl.float32)
    if slot >= 0:
        n, k, _ = adapter_numbers(meta_SG3, slot, g, G)
        routed = tl.where(k < n, n, 0)
        z_N = sum_splits(z_TGPN + (t * G + g) * SPLITS * N + e, e < routed, N, SPLITS)
    tl.store(z_TGN + (t * G + g) * N + e, z_N)


@triton.jit
def _router(
    x_TD, router_ND, meta_SG3, slot, order_I, count, z_TGPN, D, G, N, g, split, first,
    SPLITS: tl.constexpr, SPAN: tl.constexpr, GROUP: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """The router's part stays in registers, the tile's tokens pass by, `GROUP` at a time.

    A span is seen as [SPAN / 32, 32]: a thread sums one column of it, and then 32 threads sum
    theirs. With the span as one axis the compiler spreads it over all warps, and most of the work
    is adding between them.
    """
    LANES: tl.constexpr = 32
    n, k, _ = adapter_numbers(meta_SG3, slot, g, G)
    t_I = _tokens(order_I, 0, count, GROUP)
    if (first < n) & (k < n):
        c = tl.arange(0, SPAN // LANES)
        d_cL = split * SPAN + c[:, None] * LANES + tl.arange(0, LANES)[None, :]
        e = first + tl.arange(0, EXPERTS)
        p_cEL = tl.load(
            router_ND + e[None, :, None] * D + d_cL[:, None, :],
            mask=(e < n)[None, :, None] & (d_cL < D)[:, None, :],
            other=0.0,
        )
        x_IcL = _part(x_TD, t_I, d_cL, 0, count, D, GROUP)
        next_I = _tokens(order_I, GROUP, count, GROUP)
        for start in range(0, count, GROUP):
            x_next_IcL = _part(x_TD, next_I, d_cL, start + GROUP, count, D, GROUP)
            later_I = _tokens(order_I, start + 2 * GROUP, count, GROUP)
            z_IEL = tl.sum(x_IcL.to(tl.float32)[:, :, None, :] * p_cEL[None, :, :, :], axis=1)
            z = z_TGPN + ((t_I[:, None] * G + g) * SPLITS + split) * N + e[None, :]
            inside_I = start + tl.arange(0, GROUP) < count
            tl.store(z, tl.sum(z_IEL, axis=2), mask=inside_I[:, None] & (e < N)[None, :])
            x_IcL, t_I, next_I = x_next_IcL, next_I, later_I


@triton.jit
def _tokens(order_I, start, count, GROUP: tl.constexpr):
    i = start + tl.arange(0, GROUP)
    return tl.load(order_I + i, mask=i < count, other=0).to(tl.int64)


@triton.jit
def _part(x_TD, t_I, d_cL, start, count, D, GROUP: tl.constexpr):
    i = start + tl.arange(0, GROUP)
    return tl.load(
        x_TD + t_I[:, None, None] * D + d_cL[None, :, :],
        mask=(i < count)[:, None, None] & (d_cL < D)[None, :, :],
        other=0.0,
    )


@triton.jit
def _shrink_tile(
    x_TD, a_MD, meta_SG3, slot, order_I, count, h_TGPM, D, G, M, g, split, first,
    SPLITS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    t_I = _tokens(order_I, 0, count, TILE)
    n, _, r = adapter_numbers(meta_SG3, slot, g, G)
    if first < n * r:
        j = first + tl.arange(0, ROWS)
        x_rows, x_live = x_TD + t_I[:, None] * D, (tl.arange(0, TILE) < count)[:, None]
        a_rows, a_live = a_MD + j[None, :] * D, (j < n * r)[None, :]
        h_IJ = tl.zeros([TILE, ROWS], tl.float32)
        for c in range(0, SPAN, CHUNK):
            d = split * SPAN + c + tl.arange(0, CHUNK)
            x_Id = tl.load(x_rows + d[None, :], mask=x_live & (d < D)[None, :], other=0.0)
            a_dJ = tl.load(a_rows + d[:, None], mask=a_live & (d < D)[:, None], other=0.0)
            h_IJ = tl.dot(x_Id, a_dJ, h_IJ, input_precision="ieee")
        h = h_TGPM + ((t_I[:, None] * G + g) * SPLITS + split) * M + j[None, :]
        tl.store(h, h_IJ, mask=x_live & (j < M)[None, :])
