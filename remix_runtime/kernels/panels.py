"""The weights of a linear layer in the order in which `native/linear.c` reads them.

Shape suffixes: D inputs, O outputs, P outputs of a panel, g groups of inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remix_runtime.errors import ConfigError
from remix_runtime.kernels.huge_pages import Arena

STORED_TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types that are packed as they are."""
GROUP = 32
"""Inputs that share a scale in 8 bits: GROUP of `native/linear.c`."""
INT8_BYTES = 1 + 2 / GROUP
"""Of a weight in 8 bits, its part of the scale included."""
_LARGEST = 127


def pack(weight_OD: Tensor, panel: int, arena: Arena) -> Tensor:
    """The panels [C, D, P] of weights of one of the `STORED_TYPES`, in that type."""
    O, D = weight_OD.shape  # noqa: E741
    packed_CDP = arena.zeros(-(-O // panel), D, panel, dtype=weight_OD.dtype)
    for i, rows_PD in enumerate(torch.split(weight_OD, panel)):
        packed_CDP[i, :, : len(rows_PD)] = rows_PD.T
        if weight_OD.dtype == torch.bfloat16:
            packed_CDP[i] = interleaved(packed_CDP[i])
    return packed_CDP


def pack_int8(weight_OD: Tensor, panel: int, arena: Arena) -> Tensor:
    """The panels [C, g, 2 + GROUP, P] of `quantize`d weights, in bytes: the scales, then the
    weights. Raises `ConfigError` for weights that are not finite."""
    O, D = weight_OD.shape  # noqa: E741
    groups = -(-D // GROUP)
    packed = arena.zeros(-(-O // panel), groups, 2 + GROUP, panel, dtype=torch.int8)
    for i, rows_PD in enumerate(torch.split(weight_OD, panel)):
        q_PD, scale_Pg = quantize(F.pad(rows_PD, (0, 0, 0, panel - len(rows_PD))))
        scale_gP = interleaved(scale_Pg.T.contiguous())
        packed[i, :, :2] = scale_gP.view(torch.int8).view(groups, 2, panel)
        q_DP = F.pad(q_PD, (0, groups * GROUP - D)).T
        packed[i, :, 2:] = q_DP.reshape(groups, GROUP, panel)
    return packed


def quantize(weight_OD: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as int8 [O, D] and bfloat16 scales [O, g]: symmetric, by the largest of a group.

    A scale is of 8 bits and a weight of 7, so their product is exact in float32. Raises
    `ConfigError` for weights that are not finite.
    """
    O, D = weight_OD.shape  # noqa: E741
    groups = -(-D // GROUP)
    w_OgG = F.pad(weight_OD.float(), (0, groups * GROUP - D)).view(O, groups, GROUP)
    largest_Og = w_OgG.abs().amax(-1)
    scale_Og = (largest_Og / _LARGEST).bfloat16()
    if not largest_Og.isfinite().all():
        raise ConfigError("found a weight that is no finite number, expected none for int8")
    # A scale of 0 stands for weights that are 0, or too small for one.
    q_OgG = (w_OgG / scale_Og.float().unsqueeze(-1)).round().clamp(-_LARGEST, _LARGEST)
    q_OgG = torch.where(scale_Og.unsqueeze(-1) == 0, 0, q_OgG)
    return q_OgG.view(O, -1)[:, :D].to(torch.int8), scale_Og


def dequantize(q_OD: Tensor, scale_Og: Tensor) -> Tensor:
    """The weights that `quantize` gave, in float32."""
    scale_OD = scale_Og.float().repeat_interleave(GROUP, dim=1)[:, : q_OD.shape[1]]
    return q_OD.float() * scale_OD


def interleaved(rows_DP: Tensor) -> Tensor:
    """The two halves of each row of bfloat16, number by number: the kernel gets each as one vector
    by one operation."""
    D, panel = rows_DP.shape
    return rows_DP.view(D, 2, panel // 2).transpose(1, 2).reshape(D, panel)
