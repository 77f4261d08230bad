"""Router logits and A x as Triton kernels: partial sums over spans of D, in float32.

A span's sum is written to its own place and whoever reads it adds the spans in order
(`triton_select.sum_splits`): no atomics, the same bits in every run. Router logits come from one
compiled kernel, `router_and_shrink`, whatever the batch, so a token's logits have the same bits
in every batch and form.

Shape suffixes: T tokens, D input width, G slices, S slots, N experts, M rows of A, P splits of D,
C tiles; of a program: I tokens, E experts, J rows of A, d a part of D.
"""

from __future__ import annotations

import triton
import triton.language as tl

from remix_runtime.kernels.triton_select import (
    adapter_numbers,
    chosen_bits,
    chosen_rows,
    sum_splits,
)


@triton.jit(do_not_specialize=["router_jobs"])
def router_and_shrink(
    x_TD, router_SGND, a_SGMD, meta_SG3, tiles_C3, order_T, z_TGPN, h_TGPM,
    D, G, N, M, router_jobs,
    SPLITS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    GROUP: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, jobs, slices): the first `router_jobs` programs of a tile and slice compute
    logits, each of a span of D and `EXPERTS` experts; the others A x, of a span and `ROWS` rows."""
    tile = tiles_C3 + 3 * tl.program_id(0)
    slot = tl.load(tile)
    if slot < 0:
        return
    first, count = tl.load(tile + 1), tl.load(tile + 2)
    job, g = tl.program_id(1), tl.program_id(2)
    n, k, r = adapter_numbers(meta_SG3, slot, g, G)
    place = slot.to(tl.int64) * G + g
    if job < router_jobs:
        split, block = job % SPLITS, job // SPLITS
        if (block * EXPERTS < n) & (k < n):
            _router(
                x_TD, router_SGND + place * N * D, order_T + first, count, z_TGPN,
                D, G, N, g, n, split, block * EXPERTS, SPLITS, SPAN, GROUP, EXPERTS,
            )  # fmt: skip
    else:
        split, block = (job - router_jobs) % SPLITS, (job - router_jobs) // SPLITS
        if block * ROWS < n * r:
            _shrink_tile(
                x_TD, a_SGMD + place * M * D, order_T + first, count, h_TGPM,
                D, G, M, g, n * r, split, block * ROWS, SPLITS, SPAN, TILE, CHUNK, ROWS,
            )  # fmt: skip


@triton.jit
def shrink_tiles(
    x_TD, a_SGMD, meta_SG3, tiles_C3, order_T, h_TGPM,
    D, G, M,
    SPLITS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, splits · blocks of rows, slices): A x of all experts, for prompts."""
    tile = tiles_C3 + 3 * tl.program_id(0)
    slot = tl.load(tile)
    if slot < 0:
        return
    first, count = tl.load(tile + 1), tl.load(tile + 2)
    job, g = tl.program_id(1), tl.program_id(2)
    n, _, r = adapter_numbers(meta_SG3, slot, g, G)
    if job // SPLITS * ROWS < n * r:
        _shrink_tile(
            x_TD, a_SGMD + (slot.to(tl.int64) * G + g) * M * D, order_T + first, count, h_TGPM,
            D, G, M, g, n * r, job % SPLITS, job // SPLITS * ROWS, SPLITS, SPAN, TILE, CHUNK, ROWS,
        )  # fmt: skip


@triton.jit
def shrink_rows(
    x_TD, a_SGMD, meta_SG3, slot_T, z_TGPN, h_TGPM,
    D, G, M,
    Z_SPLITS: tl.constexpr, SPLITS: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, splits · blocks of rows, slices): A x of a token's chosen experts only."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_T + t)
    if slot < 0:
        return
    job, g = tl.program_id(1), tl.program_id(2)
    split, first = job % SPLITS, job // SPLITS * ROWS
    n, k, r = adapter_numbers(meta_SG3, slot, g, G)
    if first < k * r:
        z_pointers = z_TGPN + (t * G + g) * Z_SPLITS * N + tl.arange(0, N)[None, :]
        z_1N = sum_splits(z_pointers, tl.arange(0, N)[None, :] < n, N, Z_SPLITS)
        row_J, live_J = chosen_rows(chosen_bits(z_1N, n, k, N), first, k, r, N, ROWS)
        d = split * SPAN + tl.arange(0, SPAN)
        x_d = tl.load(x_TD + t * D + d, mask=d < D, other=0.0).to(tl.float32)
        a_rows = a_SGMD + (slot.to(tl.int64) * G + g) * M * D + row_J[:, None] * D
        a_Jd = tl.load(a_rows + d[None, :], mask=live_J[:, None] & (d < D)[None, :], other=0.0)
        h_J = tl.sum(a_Jd.to(tl.float32) * x_d[None, :], axis=1)
        tl.store(h_TGPM + ((t * G + g) * SPLITS + split) * M + row_J, h_J, mask=live_J)


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
    x_TD, router_ND, order_I, count, z_TGPN, D, G, N, g, n, split, first,
    SPLITS: tl.constexpr, SPAN: tl.constexpr, GROUP: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """The router's part stays in registers, the tile's tokens pass by, `GROUP` at a time.

    A span is seen as [SPAN / 32, 32]: a thread sums one column of it, and then 32 threads sum
    theirs. With the span as one axis the compiler spreads it over all warps, and most of the work
    is adding between them.
    """
    LANES: tl.constexpr = 32
    c = tl.arange(0, SPAN // LANES)
    d_cL = split * SPAN + c[:, None] * LANES + tl.arange(0, LANES)[None, :]
    e = first + tl.arange(0, EXPERTS)
    p_cEL = tl.load(
        router_ND + e[None, :, None] * D + d_cL[:, None, :],
        mask=(e < n)[None, :, None] & (d_cL < D)[:, None, :],
        other=0.0,
    )
    for start in range(0, count, GROUP):
        i = start + tl.arange(0, GROUP)
        t_I = tl.load(order_I + i, mask=i < count, other=0).to(tl.int64)
        x_IcL = tl.load(
            x_TD + t_I[:, None, None] * D + d_cL[None, :, :],
            mask=(i < count)[:, None, None] & (d_cL < D)[None, :, :],
            other=0.0,
        ).to(tl.float32)
        z_IEL = tl.sum(x_IcL[:, :, None, :] * p_cEL[None, :, :, :], axis=1)
        z = z_TGPN + ((t_I[:, None] * G + g) * SPLITS + split) * N + e[None, :]
        tl.store(z, tl.sum(z_IEL, axis=2), mask=(i < count)[:, None] & (e < n)[None, :])


@triton.jit
def _shrink_tile(
    x_TD, a_MD, order_I, count, h_TGPM, D, G, M, g, num_rows, split, first,
    SPLITS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, TILE)
    t_I = tl.load(order_I + i, mask=i < count, other=0).to(tl.int64)
    j = first + tl.arange(0, ROWS)
    x_rows, x_live = x_TD + t_I[:, None] * D, (i < count)[:, None]
    a_rows, a_live = a_MD + j[None, :] * D, (j < num_rows)[None, :]
    h_IJ = tl.zeros([TILE, ROWS], tl.float32)
    for c in range(0, SPAN, CHUNK):
        d = split * SPAN + c + tl.arange(0, CHUNK)
        x_Id = tl.load(x_rows + d[None, :], mask=x_live & (d < D)[None, :], other=0.0)
        a_dJ = tl.load(a_rows + d[:, None], mask=a_live & (d < D)[:, None], other=0.0)
        h_IJ = tl.dot(x_Id, a_dJ, h_IJ, input_precision="ieee")
    h = h_TGPM + ((t_I[:, None] * G + g) * SPLITS + split) * M + j[None, :]
    tl.store(h, h_IJ, mask=x_live & a_live)
