"""Equations 4-6 of ReMix, token by token: what every kernel is tested against.

Shape suffixes: T tokens, D input width, O output width, n experts, k activated, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.adapter.routing import top_k_experts


def linear(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """y = W x + b in float64, rounded once."""
    y_TO = x_TD.double() @ weight_OD.double().T
    return (y_TO if bias_O is None else y_TO + bias_O.double()).float()


def mixture(
    x_D: Tensor, layer: LayerWeights, top_k: int, routing_weight: float
) -> tuple[Tensor, list[int]]:
    """ω · sum over i in I of B_i A_i x for one token, float64 [O], and I in ascending order."""
    z_n = layer.router_nD.float() @ x_D.float()
    selection = sorted(top_k_experts(z_n, top_k).tolist())
    y_O = torch.zeros(layer.b_nOr.shape[1], dtype=torch.float64, device=x_D.device)
    for i in selection:
        y_O += layer.b_nOr[i].double() @ (layer.a_nrD[i].double() @ x_D.double())
    return routing_weight * y_O, selection


def add_mixture(
    y_TO: Tensor,
    x_TD: Tensor,
    runs: Sequence[tuple[int, int, int]],
    slots: Sequence[tuple[LayerWeights, int, float] | None],
) -> list[list[int]]:
    """Adds each token's mixture to its row of `y_TO`; slots hold (layer, top_k, ω).

    Returns the activated experts of each token, none for tokens of the base model.
    """
    routes: list[list[int]] = []
    for start, end, slot in runs:
        for t in range(start, end):
            adapter = slots[slot] if slot >= 0 else None
            if adapter is None:
                routes.append([])
                continue
            delta_O, selection = mixture(x_TD[t], *adapter)
            y_TO[t] += delta_O.to(y_TO.dtype)
            routes.append(selection)
    return routes
