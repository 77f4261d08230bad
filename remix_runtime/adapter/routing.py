"""Which experts a token activates: equations 4-6 and section 3 of ReMix (arXiv 2603.10160).

Shape suffixes: T tokens (any leading shape), n experts, k activated experts.
All logits are float32. `z_Tn` are router logits, `selection_Tk` expert indices.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_k_experts(z_Tn: Tensor, k: int) -> Tensor:
    """The k experts with the largest logits, best first; equal logits go to the lower index.

    Works on logits, never on the softmax, which underflows to ties on massive activations.
    `torch.topk` leaves the order of ties open, a stable sort does not: the same on every device.

    Returns int64 [..., k]. NaN logits sort first, as in `torch.sort`.
    """
    return torch.sort(z_Tn, dim=-1, descending=True, stable=True).indices[..., :k]


def sample_experts(z_Tn: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """An ordered draw of k experts from softmax(z) without replacement (Gumbel-top-k).

    Returns int64 [..., k] in the order of the draw.
    """
    # Exponential noise: argmax(z - log E) has softmax(z)'s law, and -log E is a Gumbel variate.
    noise_Tn = torch.empty_like(z_Tn).exponential_(generator=generator)
    return torch.topk(z_Tn.detach() - noise_Tn.log(), k, dim=-1).indices


def selection_log_prob(z_Tn: Tensor, selection_Tk: Tensor) -> Tensor:
    """log Q(I) = sum_j [ z_{i_j} - logsumexp(z over the experts not yet drawn) ].

    Differentiable in `z_Tn`. Returns float32 [...]: one number per token.
    """
    chosen_Tk = z_Tn.gather(-1, selection_Tk)
    rest_Tn = z_Tn
    total_T = torch.zeros_like(chosen_Tk[..., 0])
    for j in range(selection_Tk.shape[-1]):
        total_T = total_T + chosen_Tk[..., j] - torch.logsumexp(rest_Tn, dim=-1)
        rest_Tn = rest_Tn.scatter(-1, selection_Tk[..., j : j + 1], float("-inf"))
    return total_T


def expert_mask(selection_Tk: Tensor, n: int) -> Tensor:
    """Boolean [..., n]: which experts the selection activates."""
    mask_Tn = torch.zeros(*selection_Tk.shape[:-1], n, dtype=torch.bool, device=selection_Tk.device)
    return mask_Tn.scatter(-1, selection_Tk, True)


def effective_support_size(weights_Tn: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of non-negative routing weights: k for k equal weights, 1 for one.

    Returns float32 [...]. Rows without weight give 0.
    """
    w_Tn = weights_Tn.float()
    square_T = w_Tn.square().sum(-1)
    return torch.where(square_T > 0, w_Tn.sum(-1).square() / square_T, torch.zeros_like(square_T))
