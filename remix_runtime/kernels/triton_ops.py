"""The forms as PyTorch operators, which torch.compile and CUDA graphs take as they are.

Shape suffixes as in `triton_launch.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from remix_runtime.kernels import triton_launch
from remix_runtime.kernels.triton_forms import Form
from remix_runtime.kernels.triton_launch import Operands, Parts


@torch.library.custom_op("remix::router_logits", mutates_args=())
def router_logits(
    x_TD: Tensor,
    a_SGMD: Tensor,
    router_SGND: Tensor,
    b_SMO: Tensor,
    meta_SG3: Tensor,
    weight_SG: Tensor,
    columns_G2: Tensor,
    slot_T: Tensor,
    order_T: Tensor,
    few_C3: Tensor,
    many_C3: Tensor,
    widths: Sequence[int],
) -> Tensor:
    """Router logits [T, G, N] in float32, 0 where a token has none."""
    operands = Operands(
        a_SGMD, router_SGND, b_SMO, meta_SG3, weight_SG, columns_G2,
        slot_T, order_T, few_C3, many_C3, widths,
    )  # fmt: skip
    with torch.cuda.device_of(x_TD):  # type: ignore[no-untyped-call]
        return triton_launch.logits(_aligned(x_TD), operands)


@router_logits.register_fake
def _(x_TD: Tensor, a_SGMD: Tensor, router_SGND: Tensor, *_: object) -> Tensor:
    return x_TD.new_empty((x_TD.shape[0], *router_SGND.shape[1:3]), dtype=torch.float32)


@torch.library.custom_op("remix::add_mixture", mutates_args=("y_TO", "routes_TGk"))
def add_mixture(
    y_TO: Tensor,
    routes_TGk: Tensor | None,
    z_TGN: Tensor | None,
    x_TD: Tensor,
    a_SGMD: Tensor,
    router_SGND: Tensor,
    b_SMO: Tensor,
    meta_SG3: Tensor,
    weight_SG: Tensor,
    columns_G2: Tensor,
    slot_T: Tensor,
    order_T: Tensor,
    few_C3: Tensor,
    many_C3: Tensor,
    widths: Sequence[int],
    form: int,
) -> None:
    """y += the mixtures, by the `Form`; with the logits `z_TGN` where they are given.
    `routes_TGk`, filled with -1, receives the selections of its slices."""
    operands = Operands(
        a_SGMD, router_SGND, b_SMO, meta_SG3, weight_SG, columns_G2,
        slot_T, order_T, few_C3, many_C3, widths,
    )  # fmt: skip
    with torch.cuda.device_of(x_TD):  # type: ignore[no-untyped-call]
        parts = triton_launch.begin(_aligned(x_TD), operands, Form(form), z_TGN, routes_TGk)
        triton_launch.finish(y_TO, operands, Form(form), parts, z_TGN, routes_TGk)


@add_mixture.register_fake
def _(*_: object) -> None:
    return None


@torch.library.custom_op("remix::begin_mixture", mutates_args=("routes_TGk",))
def begin_mixture(
    routes_TGk: Tensor | None,
    x_TD: Tensor,
    a_SGMD: Tensor,
    router_SGND: Tensor,
    b_SMO: Tensor,
    meta_SG3: Tensor,
    weight_SG: Tensor,
    columns_G2: Tensor,
    slot_T: Tensor,
    order_T: Tensor,
    few_C3: Tensor,
    many_C3: Tensor,
    widths: Sequence[int],
    form: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What of `add_mixture` needs no y, on a stream of its own: the `Parts` for `finish_mixture`,
    which must follow."""
    operands = Operands(
        a_SGMD, router_SGND, b_SMO, meta_SG3, weight_SG, columns_G2,
        slot_T, order_T, few_C3, many_C3, widths,
    )  # fmt: skip
    with torch.cuda.device_of(x_TD):  # type: ignore[no-untyped-call]
        aligned_TD = _aligned(x_TD)
        parts = triton_launch.begin(aligned_TD, operands, Form(form), None, routes_TGk, beside=True)
        if aligned_TD is not x_TD and x_TD.is_cuda:  # nobody keeps it for that stream
            aligned_TD.record_stream(triton_launch.side_stream(x_TD.device))
    return parts.z_TGPN, parts.h_TGPM, parts.rows_TGM


@begin_mixture.register_fake
def _(
    routes_TGk: Tensor | None,
    x_TD: Tensor,
    a_SGMD: Tensor,
    router_SGND: Tensor,
    *others: Tensor | Sequence[int] | int,
) -> tuple[Tensor, Tensor, Tensor]:
    form = others[-1]
    assert isinstance(form, int)
    parts = triton_launch.empty_parts(x_TD, a_SGMD, router_SGND, Form(form), with_router=True)
    return parts.z_TGPN, parts.h_TGPM, parts.rows_TGM


@torch.library.custom_op("remix::finish_mixture", mutates_args=("y_TO", "routes_TGk"))
def finish_mixture(
    y_TO: Tensor,
    routes_TGk: Tensor | None,
    z_TGPN: Tensor,
    h_TGPM: Tensor,
    rows_TGM: Tensor,
    x_TD: Tensor,
    a_SGMD: Tensor,
    router_SGND: Tensor,
    b_SMO: Tensor,
    meta_SG3: Tensor,
    weight_SG: Tensor,
    columns_G2: Tensor,
    slot_T: Tensor,
    order_T: Tensor,
    few_C3: Tensor,
    many_C3: Tensor,
    widths: Sequence[int],
    form: int,
) -> None:
    """y += the mixtures, after `begin_mixture` with the same arguments. It takes what it does not
    read, x above all, so that nobody frees that while the other stream reads it."""
    operands = Operands(
        a_SGMD, router_SGND, b_SMO, meta_SG3, weight_SG, columns_G2,
        slot_T, order_T, few_C3, many_C3, widths,
    )  # fmt: skip
    parts = Parts(z_TGPN, h_TGPM, rows_TGM)
    with torch.cuda.device_of(x_TD):  # type: ignore[no-untyped-call]
        triton_launch.finish(y_TO, operands, Form(form), parts, None, routes_TGk, beside=True)


@finish_mixture.register_fake
def _(*_: object) -> None:
    return None


def _aligned(x_TD: Tensor) -> Tensor:
    """Packed rows at an address that vector loads can take: then the kernels are compiled once,
    and the same tokens get the same bits."""
    x_TD = x_TD.contiguous()
    return x_TD.clone() if x_TD.data_ptr() % 16 else x_TD
