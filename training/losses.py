"""The ReMix objective as pure functions: supervised loss, RLOO advantages, router surrogate.

Shape suffixes: B sequences in the batch (examples times M), E examples, M selections of one
example, L adapted layers, T positions, R positions that carry a loss, V vocabulary, n experts,
k activated experts.

Position t of a loss tensor is the loss of predicting token t+1 from position t. A selection at
position t can therefore change the losses at t and later, and none before.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from remix_runtime.adapter.routing import selection_log_prob

Credit = Literal["sequence", "causal"]

IGNORED = -100
"""The label of a position that carries no loss."""

_AT_ONCE = 1 << 22
"""Logits whose gradients are made at a time: few enough that their memory is used again."""

ROUNDING = 1e-5
"""Losses of one example that differ by less than this, relatively, are equal but for float32's
rounding. Some tens of times what two rows of one batch were seen to differ by."""


def token_losses(logits_BRV: Tensor, labels_BR: Tensor) -> Tensor:
    """Cross entropy in nats, float32 [B, R]; 0 where the label is `IGNORED`."""
    logits_PV, labels_P = logits_BRV.float().flatten(0, 1), labels_BR.flatten()
    flat: Tensor = _CrossEntropy.apply(logits_PV, labels_P)  # type: ignore[no-untyped-call]
    return flat.view_as(labels_BR)


class _CrossEntropy(torch.autograd.Function):
    """PyTorch's cross entropy by its own parts, bit for bit, with two numbers for each logit in
    memory in place of three: the gradient takes the place of the log-probabilities, by and by. It
    can be asked for once."""

    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, labels_P: Tensor) -> Tensor:
        log_probs_PV = torch.log_softmax(logits_PV, -1)
        ctx.save_for_backward(log_probs_PV, labels_P)
        return F.nll_loss(log_probs_PV, labels_P, reduction="none", ignore_index=IGNORED)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_P: Tensor) -> tuple[Tensor, None]:
        aten = torch.ops.aten
        log_probs_PV, labels_P = ctx.saved_tensors
        rows = max(1, _AT_ONCE // log_probs_PV.shape[1])
        parts = (t.split(rows) for t in (gradient_P.contiguous(), log_probs_PV, labels_P))
        for of_loss_R, part_RV, labels_R in zip(*parts, strict=True):
            weight = of_loss_R.new_zeros(())  # of a sum, which this is not
            of_part_RV = aten.nll_loss_backward(
                of_loss_R, part_RV, labels_R, None, 0, IGNORED, weight
            )
            part_RV.copy_(aten._log_softmax_backward_data(of_part_RV, part_RV, 1, part_RV.dtype))
        return log_probs_PV, None


def loss_shares(loss_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Each token's share of its sequence's mean loss: the row sums are the mean losses [B]."""
    count_B1 = (labels_BT != IGNORED).sum(-1, keepdim=True)
    return loss_BT / count_B1


def loss_to_go(share_BT: Tensor) -> Tensor:
    """The loss-to-go: the part of the sequence loss at t and later, [B, T]."""
    return share_BT.flip(-1).cumsum(-1).flip(-1)


def rloo_advantages(share_BT: Tensor, *, selections: int, credit: Credit) -> Tensor:
    """The advantage of each selection: the loss that it is charged with, less the mean over its
    example's M rows.

    `sequence` charges every position with the whole loss of the sequence (the paper), `causal` with
    the loss-to-go. Both leave the estimator unbiased, since the part left out does not depend on
    the selection. Rows of one example are adjacent. Returns [B, T], detached.

    A difference within rounding is 0. As long as B is 0 all selections of an example have the same
    loss, and AdamW, which divides by the size of a gradient, would turn the rounding noise into
    whole steps of the routers.
    """
    share_BT = share_BT.detach()
    cost_BT = loss_to_go(share_BT)
    if credit == "sequence":
        cost_BT = cost_BT[:, :1].expand_as(cost_BT)
    cost_EMT = cost_BT.reshape(-1, selections, cost_BT.shape[-1])
    mean_E1T = cost_EMT.mean(1, keepdim=True)
    advantage_EMT = cost_EMT - mean_E1T
    is_noise_EMT = advantage_EMT.abs() <= ROUNDING * mean_E1T.abs()
    return advantage_EMT.masked_fill(is_noise_EMT, 0.0).flatten(0, 1)


def router_surrogate(advantage_BT: Tensor, log_q_BT: Tensor, *, selections: int) -> Tensor:
    """A scalar whose gradient is 1/(M-1) · sum over m of advantage · ∇ log Q(I_m), averaged
    over examples. Its value means nothing."""
    total_EM = (advantage_BT * log_q_BT).sum(-1).view(-1, selections)
    return total_EM.sum(1).mean() / (selections - 1)


def route_log_probs(logits_LBTn: Tensor, selection_LBTk: Tensor, mask_BT: Tensor) -> Tensor:
    """log Q of each position's selections, summed over layers; 0 on padding. [B, T]."""
    return selection_log_prob(logits_LBTn, selection_LBTk).sum(0) * mask_BT


def remix_loss(
    share_BT: Tensor, log_q_BT: Tensor, *, selections: int, credit: Credit
) -> tuple[Tensor, dict[str, float]]:
    """Supervised loss plus router surrogate, one backward pass for both.

    Experts receive the supervised gradient averaged over the M selections, routers only the
    surrogate's, since their input is detached and the selection is not differentiable.
    """
    loss_B = share_BT.sum(-1)
    advantage_BT = rloo_advantages(share_BT, selections=selections, credit=credit)
    surrogate = router_surrogate(advantage_BT, log_q_BT, selections=selections)
    spread = loss_B.detach().view(-1, selections).std(1).mean()
    loss = loss_B.mean()
    return loss + surrogate, {"loss": loss.item(), "loss_spread": spread.item()}


def supervised_loss(share_BT: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The mean over examples of their mean token loss: the objective of the baselines."""
    loss = share_BT.sum(-1).mean()
    return loss, {"loss": loss.item()}


def routing_entropy(logits_LBTn: Tensor) -> Tensor:
    """Entropy of the routing distribution in nats, [L, B, T]."""
    log_q = torch.log_softmax(logits_LBTn, dim=-1)
    return -(log_q.exp() * log_q).sum(-1)
