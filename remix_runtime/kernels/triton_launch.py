"""The launches of each form.

Shape suffixes: T tokens, D input width, O all slices' outputs, G slices, S slots, N experts (a
power of two), M rows of A and of Bᵀ, P splits of D, C tiles, k activated experts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from remix_runtime.kernels import triton_forms
from remix_runtime.kernels.device_plan import FEW, MANY
from remix_runtime.kernels.triton_expand import expand_rows, expand_tiles, gate_tiles
from remix_runtime.kernels.triton_forms import Form
from remix_runtime.kernels.triton_shrink import (
    router_and_shrink,
    shrink_rows,
    shrink_tiles,
    sum_router,
)

ROUTER_EXPERTS = 8
SHRINK_ROWS = 16


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


class Parts(NamedTuple):
    """What `begin` makes and `finish` takes."""

    z_TGPN: Tensor
    """Partial sums of router logits; empty where others made them."""
    h_TGPM: Tensor
    """Partial sums of A x."""
    rows_TGM: Tensor
    """By form: the chosen rows of A (int32), ω A x of the chosen experts, or empty."""


def empty_parts(
    x_TD: Tensor, a_SGMD: Tensor, router_SGND: Tensor, form: Form, *, with_router: bool
) -> Parts:
    _, G, N, D = router_SGND.shape
    T, M = x_TD.shape[0], a_SGMD.shape[2]
    P = triton.cdiv(D, triton_forms.TUNING.span)
    is_chosen, is_prompt = form is Form.ROWS_CHOSEN, form is Form.PROMPT
    return Parts(
        x_TD.new_empty((T, G, P, N if with_router else 0), dtype=torch.float32),
        x_TD.new_empty((T, G, triton.cdiv(D, _span(form)), M), dtype=torch.float32),
        x_TD.new_empty(
            (T, G, M if is_chosen or is_prompt else 0), dtype=torch.int32 if is_chosen else None
        ),
    )


def logits(x_TD: Tensor, operands: Operands) -> Tensor:
    """Router logits [T, G, N], float32, 0 where a token has none."""
    G, N, _, _ = operands.sizes
    form = Form.ROWS_CHOSEN
    parts = empty_parts(x_TD, operands.a_SGMD, operands.router_SGND, form, with_router=True)
    _router_and_shrink(x_TD, operands, parts, router=True, shrink=False)
    z_TGN = x_TD.new_empty((len(x_TD), G, N), dtype=torch.float32)
    sum_router[(len(x_TD), G)](
        parts.z_TGPN, z_TGN, operands.meta_SG3, operands.slot_T, G,
        SPLITS=parts.z_TGPN.shape[2], N=N,
    )  # fmt: skip
    return z_TGN


def begin(
    x_TD: Tensor,
    operands: Operands,
    form: Form,
    z_TGN: Tensor | None,
    routes_TGk: Tensor | None,
    *,
    beside: bool = False,
) -> Parts:
    """All that needs no y. With logits `z_TGN` that others made, no router is read.

    `beside`: on a stream of its own, which `finish` waits for. All tensors belong to the caller's
    stream: it must neither free nor write them before `finish`, which is why that takes them all.
    """
    with_router = z_TGN is None
    # Made before the fork: on the side stream their memory would be that stream's.
    parts = empty_parts(x_TD, operands.a_SGMD, operands.router_SGND, form, with_router=with_router)
    if not (beside and x_TD.is_cuda):
        _begin(x_TD, operands, form, z_TGN, routes_TGk, parts)
        return parts
    stream = side_stream(x_TD.device)
    stream.wait_stream(torch.cuda.current_stream(x_TD.device))
    with torch.cuda.stream(stream):
        _begin(x_TD, operands, form, z_TGN, routes_TGk, parts)
    return parts


def finish(
    y_TO: Tensor,
    operands: Operands,
    form: Form,
    parts: Parts,
    z_TGN: Tensor | None,
    routes_TGk: Tensor | None,
    *,
    beside: bool = False,
) -> None:
    """y += the mixtures, of what `begin` made."""
    if beside and y_TO.is_cuda:
        torch.cuda.current_stream(y_TO.device).wait_stream(side_stream(y_TO.device))
    if z_TGN is not None:
        parts = parts._replace(z_TGPN=z_TGN.unsqueeze(2))
    routes = _routes(operands, routes_TGk)
    # What was launched before on this stream is `begin`'s last kernel, or else the base product.
    if form is Form.ROWS_CHOSEN:
        _expand_rows(y_TO, operands, parts, is_next=not beside)
    else:
        _expand_tiles(y_TO, operands, form, parts, routes, is_next=not beside)


def _begin(
    x_TD: Tensor,
    operands: Operands,
    form: Form,
    z_TGN: Tensor | None,
    routes_TGk: Tensor | None,
    parts: Parts,
) -> None:
    with_router, all_rows = z_TGN is None, form is Form.TILES
    if with_router or all_rows:
        _router_and_shrink(x_TD, operands, parts, router=with_router, shrink=all_rows)
    if z_TGN is not None:
        parts = parts._replace(z_TGPN=z_TGN.unsqueeze(2))
    routes = _routes(operands, routes_TGk)
    if form is Form.ROWS_CHOSEN:
        _shrink_rows(x_TD, operands, parts, routes, is_next=with_router)
    elif form is Form.PROMPT:
        _gated_prompt(x_TD, operands, parts, routes, is_next=with_router)


def _routes(operands: Operands, routes_TGk: Tensor | None) -> Routes:
    if routes_TGk is None:
        return operands.order_T, 0, 0, 0
    return routes_TGk, routes_TGk.stride(0), routes_TGk.stride(1), routes_TGk.shape[1]


def _router_and_shrink(
    x_TD: Tensor, operands: Operands, parts: Parts, *, router: bool, shrink: bool
) -> None:
    G, N, M, D = operands.sizes
    tuning = triton_forms.TUNING
    P, H = triton.cdiv(D, tuning.span), triton.cdiv(D, tuning.shrink_span)
    router_jobs = P * triton.cdiv(N, ROUTER_EXPERTS) if router else 0
    jobs = router_jobs + (H * triton.cdiv(M, SHRINK_ROWS) if shrink else 0)
    router_and_shrink[(len(operands.few_C3), jobs, G)](
        x_TD, operands.router_SGND, operands.a_SGMD, operands.meta_SG3,
        operands.few_C3, operands.order_T, parts.z_TGPN, parts.h_TGPM, D, G, N, M, router_jobs,
        SPLITS=P, SPAN=tuning.span, GROUP=4, EXPERTS=ROUTER_EXPERTS,
        H_SPLITS=H, H_SPAN=tuning.shrink_span, TILE=FEW, CHUNK=min(256, tuning.shrink_span // 4),
        ROWS=SHRINK_ROWS, PDL=_can_overlap(x_TD.device), num_stages=4,
    )  # fmt: skip


def _shrink_rows(
    x_TD: Tensor, operands: Operands, parts: Parts, routes: Routes, *, is_next: bool
) -> None:
    G, N, M, D = operands.sizes
    P = parts.h_TGPM.shape[2]
    shrink_rows[(len(x_TD), P * triton.cdiv(M, SHRINK_ROWS), G)](
        x_TD, operands.a_SGMD, operands.meta_SG3, operands.slot_T, *parts, *routes, D, G, M,
        Z_SPLITS=parts.z_TGPN.shape[2], SPLITS=P, SPAN=_span(Form.ROWS_CHOSEN), ROWS=SHRINK_ROWS,
        N=N, ROUTES=routes[3] > 0, PDL=_can_overlap(x_TD.device), **_launch(x_TD, is_next),
    )  # fmt: skip


def _gated_prompt(
    x_TD: Tensor, operands: Operands, parts: Parts, routes: Routes, *, is_next: bool
) -> None:
    G, N, M, D = operands.sizes
    P, rows, can_overlap = parts.h_TGPM.shape[2], _tile_rows(M), _can_overlap(x_TD.device)
    shrink_tiles[(len(operands.many_C3), P * triton.cdiv(M, rows), G)](
        x_TD, operands.a_SGMD, operands.meta_SG3, operands.many_C3, operands.order_T,
        parts.h_TGPM, D, G, M, SPLITS=P, SPAN=_span(Form.PROMPT), TILE=MANY, CHUNK=64, ROWS=rows,
        PDL=can_overlap, num_stages=4, **_launch(x_TD, is_next),
    )  # fmt: skip
    gate_tiles[(len(operands.few_C3), 1, G)](
        *parts, operands.meta_SG3, operands.weight_SG,
        operands.few_C3, operands.order_T, *routes, G, M,
        Z_SPLITS=parts.z_TGPN.shape[2], SPLITS=P, N=N, ROWS=rows, TILE=FEW,
        ROUTES=routes[3] > 0, PDL=can_overlap, **_launch(x_TD, is_next=True),
    )  # fmt: skip


def _expand_rows(y_TO: Tensor, operands: Operands, parts: Parts, *, is_next: bool) -> None:
    G, _, M, _ = operands.sizes
    tuning, widths = triton_forms.TUNING, operands.widths
    width = tuning.row_outputs if max(widths) >= tuning.wide else tuning.row_outputs // 2
    splits = parts.h_TGPM.shape[2]
    expand_rows[(len(operands.slot_T), triton.cdiv(max(widths), width), G)](
        y_TO, parts.h_TGPM, parts.rows_TGM, operands.b_SMO, operands.meta_SG3, operands.weight_SG,
        operands.columns_G2, operands.slot_T, y_TO.stride(0), G, M, sum(widths),
        SPLITS=splits, PADDED=triton.next_power_of_2(splits), ROWS=tuning.row_rows, WIDTH=width,
        ALIGNED=_is_aligned(widths), PDL=_can_overlap(y_TO.device), num_warps=tuning.row_warps,
        **_launch(y_TO, is_next),
    )  # fmt: skip


def _expand_tiles(
    y_TO: Tensor,
    operands: Operands,
    form: Form,
    parts: Parts,
    routes: Routes,
    *,
    is_next: bool,
) -> None:
    G, N, M, _ = operands.sizes
    tuning, widths, is_prompt = triton_forms.TUNING, operands.widths, form is Form.PROMPT
    tiles_C3 = operands.many_C3 if is_prompt else operands.few_C3
    is_wide = is_prompt or max(widths) >= tuning.wide
    width = tuning.tile_outputs if is_wide else tuning.tile_outputs // 2
    rows = _tile_rows(M) if is_prompt else min(tuning.tile_rows, _tile_rows(M))
    if y_TO.dtype == torch.float32:
        rows = 16  # no tensor cores: the product is written out, and registers run short
    expand_tiles[(triton.cdiv(max(widths), width), len(tiles_C3), G)](
        y_TO, parts.z_TGPN, parts.rows_TGM if is_prompt else parts.h_TGPM,
        operands.b_SMO, operands.meta_SG3, operands.weight_SG,
        operands.columns_G2, tiles_C3, operands.order_T, *routes,
        y_TO.stride(0), G, M, sum(widths),
        Z_SPLITS=parts.z_TGPN.shape[2], SPLITS=1 if is_prompt else parts.h_TGPM.shape[2], N=N,
        ROWS=rows, TILE=MANY if is_prompt else FEW, WIDTH=width, ALIGNED=_is_aligned(widths),
        GATED=is_prompt, SPARSE=tuning.is_sparse and not is_prompt and len(tiles_C3) > 1,
        ROUTES=routes[3] > 0 and not is_prompt, PDL=_can_overlap(y_TO.device),
        num_warps=8 if is_prompt else 4, **_launch(y_TO, is_next),
    )  # fmt: skip


def _span(form: Form) -> int:
    tuning = triton_forms.TUNING
    if form is Form.PROMPT:
        return tuning.prompt_span
    return tuning.chosen_span if form is Form.ROWS_CHOSEN else tuning.shrink_span


def _tile_rows(M: int) -> int:
    return int(min(64, max(16, triton.next_power_of_2(M))))


def _is_aligned(widths: Sequence[int]) -> bool:
    return all(width % 16 == 0 for width in widths)


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Before others: its few small programs shall not wait for the base product's."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@functools.cache
def _can_overlap(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _launch(tensor: Tensor, is_next: bool) -> dict[str, bool]:
    """Options of a launch; `is_next`: after a kernel of these that it may overlap. Never after
    others' kernels, which may let the next start before x or y is there."""
    overlaps = is_next and triton_forms.TUNING.overlaps_launches and _can_overlap(tensor.device)
    return {"launch_pdl": True} if overlaps else {}
