"""The kernels in PyTorch: any device, any floating type. CUDA uses it, and a CPU without a
C compiler.

Shape suffixes as in `kernels/mixture.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remix_runtime.adapter.routing import expert_mask, top_k_experts
from remix_runtime.kernels.mixture import Batch, MixtureWeights, Reduce


class TorchLinear:
    """y = W x + b with PyTorch's own product."""

    def __init__(self, weight_OD: Tensor, bias_O: Tensor | None = None) -> None:
        self.weight_OD = _own(weight_OD)
        self.bias_O = None if bias_O is None else _own(bias_O)
        self.out_features, self.in_features = weight_OD.shape

    def __call__(self, x_TD: Tensor) -> Tensor:
        return F.linear(x_TD, self.weight_OD, self.bias_O)


def _own(weight: Tensor) -> Tensor:
    """On the CPU it may be a view of the base's file, which may change under a server."""
    return weight.detach().clone() if weight.is_cpu else weight.detach()


class TorchMixtureTable:
    """The adapters of one layer by slot; each run of tokens is two dense products and a mask."""

    def __init__(self, num_slots: int, in_features: int, out_features: int) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.slots: list[MixtureWeights | None] = [None] * num_slots

    def set(self, slot: int, weights: MixtureWeights) -> None:
        self.slots[slot] = weights

    def clear(self, slot: int) -> None:
        self.slots[slot] = None

    def add(
        self,
        y_TO: Tensor,
        x_TD: Tensor,
        batch: Batch,
        routes_Tk: Tensor | None = None,
        *,
        reduce: Reduce | None = None,
    ) -> None:
        """As `MixtureTable.add`. With `reduce`, x holds a part of the inputs and the slots the
        same part of A and the router: the logits of all tokens, [T, largest n], go through it."""
        if routes_Tk is not None:
            routes_Tk.fill_(-1)
        present = [
            (start, end, weights)
            for start, end, slot in batch.runs
            if slot >= 0 and (weights := self.slots[slot]) is not None
        ]
        if not present:
            return
        parts = [F.linear(x_TD[i:end].float(), weights.plain()[0]) for i, end, weights in present]
        if reduce is not None:
            z_Tn = parts[0].new_zeros(batch.num_tokens, max(weights.n for _, _, weights in present))
            for (start, end, weights), h_Tm in zip(present, parts, strict=True):
                z_Tn[start:end, : weights.n] = h_Tm[:, weights.n * weights.r :]
            z_Tn = reduce(z_Tn)
        for (start, end, weights), h_Tm in zip(present, parts, strict=True):
            n, k, r = weights.n, weights.k, weights.r
            _, b_jO = weights.plain()
            logits_Tn = h_Tm[:, n * r :] if reduce is None else z_Tn[start:end, :n]
            selection_Tk = top_k_experts(logits_Tn, k)
            gate_Tn = expert_mask(selection_Tk, n)
            # Not a product with 0 and 1: an infinite activation of an unselected expert is no NaN.
            h_Tj = torch.where(gate_Tn.repeat_interleave(r, dim=1), h_Tm[:, : n * r], 0)
            y_TO[start:end] += (weights.routing_weight * (h_Tj @ b_jO)).to(y_TO.dtype)
            if batch.counted and weights.counts_n is not None:
                batch.selections.setdefault(start, []).append((weights.counts_n, selection_Tk))
            if routes_Tk is not None:
                routes_Tk[start:end, :k] = selection_Tk.sort(dim=1).values.to(torch.int32)
