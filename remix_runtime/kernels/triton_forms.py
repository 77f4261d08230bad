"""The forms that the ReMix addition can take on a GPU, what each launches, and which one to take.

Shape suffixes: T tokens, D input width, O all slices' outputs, G slices, S slots, N experts (a
power of two), M rows of A and of Bᵀ, P splits of D, C tiles, k activated experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
import triton
from torch import Tensor

from remix_runtime.kernels.device_plan import FEW, MANY
from remix_runtime.kernels.triton_expand import expand_rows, expand_tiles, gate_tiles
from remix_runtime.kernels.triton_shrink import (
    router_and_shrink,
    shrink_rows,
    shrink_tiles,
    sum_router,
)


class Form(IntEnum):
    """How the addition is computed. All give the same routes; sums differ by rounding."""

    ROWS_ALL = 0
    """Two launches: logits and A x of all experts; then Bᵀ of each token's own experts. For a
    token or a few: launches cost more than bytes."""
    ROWS_CHOSEN = 1
    """Three launches: logits; A x of each token's own experts; Bᵀ of the same. The fewest bytes
    for tokens of different adapters."""
    TILES = 2
    """Two launches: logits and A x of all experts; then all of Bᵀ, for `FEW` tokens of a slot at
    a time. For several tokens of each adapter: weights are read once per tile."""
    PROMPT = 3
    """Four launches, for `MANY` tokens at a time: logits; A x; selection; Bᵀ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where the forms change. To be set from the tables of `benchmarks/gpu_mixture.py`."""

    prompt_tokens: int = 256
    """From so many tokens: `PROMPT`."""
    tile_tokens: int = 3
    """From so many tokens per adapter: `TILES`."""
    chosen_tokens: int = 8
    """From so many tokens: `ROWS_CHOSEN` instead of `ROWS_ALL`."""


THRESHOLDS = Thresholds()


def choose_form(num_tokens: int, max_adapters: int, thresholds: Thresholds = THRESHOLDS) -> Form:
    """The form for a step, from what the host knows of it: nothing is asked of the device."""
    if num_tokens >= thresholds.prompt_tokens:
        return Form.PROMPT
    if num_tokens >= thresholds.tile_tokens * min(max_adapters, num_tokens):
        return Form.TILES
    return Form.ROWS_CHOSEN if num_tokens >= thresholds.chosen_tokens else Form.ROWS_ALL


SPAN = 512
"""Columns of D in one partial sum. Another value gives router logits other bits."""
PROMPT_SPAN = 1024
ROUTER_EXPERTS = 8
SHRINK_ROWS = 16
ROWS = 32
"""Rows of Bᵀ that a program has in flight."""
TILE_OUTPUTS = 128
WIDE_OUTPUT = 8192
"""From so many outputs, programs take 256 of one token instead of 128."""


@dataclass(frozen=True, slots=True)
class Operands:
    """What a table and a plan hold, as the kernels take it."""

    a_SGMD: Tensor
    router_SGND: Tensor
    b_SMO: Tensor
    meta_SG3: Tensor
    weight_SG: Tensor
    columns_G2: Tensor
    slot_T: Tensor
    order_T: Tensor
    few_C3: Tensor
    many_C3: Tensor
    widths: Sequence[int]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """G, N, M, D."""
        _, G, N, D = self.router_SGND.shape
        return G, N, self.a_SGMD.shape[2], D


Routes = tuple[Tensor, int, int, int]
"""Where the selections go: int32 [T, G, k], its strides, and how many slices are wanted."""


def logits(x_TD: Tensor, operands: Operands) -> Tensor:
    """Router logits [T, G, N], float32, 0 where a token has none."""
    G, N, _, _ = operands.sizes
    z_TGPN, _ = _router_and_shrink(x_TD, operands, shrink=False)
    z_TGN = _floats(x_TD, G, N)
    sum_router[(len(x_TD), G)](
        z_TGPN, z_TGN, operands.meta_SG3, operands.slot_T, G, SPLITS=z_TGPN.shape[2], N=N
    )
    return z_TGN


def add(
    y_TO: Tensor,
    x_TD: Tensor,
    operands: Operands,
    form: Form,
    z_TGN: Tensor | None,
    routes_TGk: Tensor | None,
) -> None:
    """y += the mixtures. With logits `z_TGN` that others made, no router is read."""
    if routes_TGk is None:
        routes: Routes = (operands.order_T, 0, 0, 0)
    else:
        routes = (routes_TGk, routes_TGk.stride(0), routes_TGk.stride(1), routes_TGk.shape[1])
    with_router, all_rows = z_TGN is None, form in (Form.ROWS_ALL, Form.TILES)
    if with_router or all_rows:
        z_TGPN, h_TGPM = _router_and_shrink(x_TD, operands, router=with_router, shrink=all_rows)
    if z_TGN is not None:
        z_TGPN = z_TGN.unsqueeze(2)
    if form is Form.ROWS_ALL:
        _expand_rows(y_TO, operands, z_TGPN, h_TGPM, routes)
    elif form is Form.ROWS_CHOSEN:
        _expand_rows(y_TO, operands, z_TGPN, _shrink_rows(x_TD, operands, z_TGPN), routes)
    elif form is Form.TILES:
        _expand_tiles(y_TO, operands, z_TGPN, h_TGPM, routes)
    else:
        gated_TGM = _gated_prompt(x_TD, operands, z_TGPN, routes)
        _expand_tiles(y_TO, operands, z_TGPN, gated_TGM, routes, is_prompt=True)


def _floats(x_TD: Tensor, *shape: int) -> Tensor:
    return x_TD.new_empty((len(x_TD), *shape), dtype=torch.float32)


def _router_and_shrink(
    x_TD: Tensor, operands: Operands, *, router: bool = True, shrink: bool = True
) -> tuple[Tensor, Tensor]:
    G, N, M, D = operands.sizes
    P = triton.cdiv(D, SPAN)
    z_TGPN = _floats(x_TD, G, P, N if router else 0)
    h_TGPM = _floats(x_TD, G, P, M if shrink else 0)
    router_jobs = P * triton.cdiv(N, ROUTER_EXPERTS) if router else 0
    jobs = router_jobs + (P * triton.cdiv(M, SHRINK_ROWS) if shrink else 0)
    router_and_shrink[(len(operands.few_C3), jobs, G)](
        x_TD, operands.router_SGND, operands.a_SGMD, operands.meta_SG3,
        operands.few_C3, operands.order_T, z_TGPN, h_TGPM, D, G, N, M, router_jobs,
        SPLITS=P, SPAN=SPAN, TILE=FEW, CHUNK=128, GROUP=4, EXPERTS=ROUTER_EXPERTS,
        ROWS=SHRINK_ROWS, num_stages=4,
    )  # fmt: skip
    return z_TGPN, h_TGPM


def _shrink_rows(x_TD: Tensor, operands: Operands, z_TGPN: Tensor) -> Tensor:
    G, N, M, D = operands.sizes
    P = triton.cdiv(D, SPAN)
    h_TGPM = _floats(x_TD, G, P, M)
    shrink_rows[(len(x_TD), P * triton.cdiv(M, SHRINK_ROWS), G)](
        x_TD, operands.a_SGMD, operands.meta_SG3, operands.slot_T, z_TGPN, h_TGPM, D, G, M,
        Z_SPLITS=z_TGPN.shape[2], SPLITS=P, SPAN=SPAN, ROWS=SHRINK_ROWS, N=N,
    )  # fmt: skip
    return h_TGPM


def _gated_prompt(x_TD: Tensor, operands: Operands, z_TGPN: Tensor, routes: Routes) -> Tensor:
    G, N, M, D = operands.sizes
    P, rows = triton.cdiv(D, PROMPT_SPAN), _prompt_rows(M)
    h_TGPM = _floats(x_TD, G, P, M)
    shrink_tiles[(len(operands.many_C3), P * triton.cdiv(M, rows), G)](
        x_TD, operands.a_SGMD, operands.meta_SG3, operands.many_C3, operands.order_T, h_TGPM,
        D, G, M, SPLITS=P, SPAN=PROMPT_SPAN, TILE=MANY, CHUNK=64, ROWS=rows, num_stages=4,
    )  # fmt: skip
    gated_TGM = x_TD.new_empty((len(x_TD), G, M))
    gate_tiles[(len(operands.few_C3), 1, G)](
        z_TGPN, h_TGPM, gated_TGM, operands.meta_SG3, operands.weight_SG,
        operands.few_C3, operands.order_T, *routes, G, M,
        Z_SPLITS=z_TGPN.shape[2], SPLITS=P, N=N, ROWS=rows, TILE=FEW, ROUTES=routes[3] > 0,
    )  # fmt: skip
    return gated_TGM


def _expand_rows(
    y_TO: Tensor, operands: Operands, z_TGPN: Tensor, h_TGPM: Tensor, routes: Routes
) -> None:
    G, N, M, _ = operands.sizes
    width = 256 if max(operands.widths) >= WIDE_OUTPUT else 128
    blocks, splits = triton.cdiv(max(operands.widths), width), h_TGPM.shape[2]
    expand_rows[(len(operands.slot_T), blocks, G)](
        y_TO, z_TGPN, h_TGPM, operands.b_SMO, operands.meta_SG3, operands.weight_SG,
        operands.columns_G2, operands.slot_T, *routes, y_TO.stride(0), G, M, sum(operands.widths),
        Z_SPLITS=z_TGPN.shape[2], SPLITS=splits, PADDED=triton.next_power_of_2(splits), N=N,
        ROWS=ROWS, WIDTH=width, ALIGNED=_is_aligned(operands.widths), ROUTES=routes[3] > 0,
    )  # fmt: skip


def _expand_tiles(
    y_TO: Tensor,
    operands: Operands,
    z_TGPN: Tensor,
    h: Tensor,
    routes: Routes,
    *,
    is_prompt: bool = False,
) -> None:
    G, N, M, _ = operands.sizes
    tiles_C3 = operands.many_C3 if is_prompt else operands.few_C3
    blocks = triton.cdiv(max(operands.widths), TILE_OUTPUTS)
    rows = _prompt_rows(M) if is_prompt else ROWS
    if y_TO.dtype == torch.float32:
        rows = 16  # no tensor cores: the product is written out, and registers run short
    expand_tiles[(blocks, len(tiles_C3), G)](
        y_TO, z_TGPN, h, operands.b_SMO, operands.meta_SG3, operands.weight_SG,
        operands.columns_G2, tiles_C3, operands.order_T, *routes,
        y_TO.stride(0), G, M, sum(operands.widths),
        Z_SPLITS=z_TGPN.shape[2], SPLITS=1 if is_prompt else h.shape[2], N=N,
        ROWS=rows, TILE=MANY if is_prompt else FEW,
        WIDTH=TILE_OUTPUTS, ALIGNED=_is_aligned(operands.widths), GATED=is_prompt,
        ROUTES=routes[3] > 0 and not is_prompt, num_warps=8 if is_prompt else 4,
    )  # fmt: skip


def _prompt_rows(M: int) -> int:
    return int(min(64, max(16, triton.next_power_of_2(M))))


def _is_aligned(widths: Sequence[int]) -> bool:
    return all(width % 16 == 0 for width in widths)
