"""The loss of a model in memory on held-out rows: the mean over rows of their mean completion-token
loss, in nats, as training has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from training.completion_loss import completion_shares
from training.data import collate
from training.encoding import Example
from training.trunk import Trunk, beyond


@torch.no_grad()
def held_out_losses(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    trunk: Trunk | None = None,
) -> list[float]:
    """The mean completion loss of each row, in the order of `examples`. A `trunk` may have kept
    what lies below the adapter."""
    losses = [0.0] * len(examples)
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].tokens), i))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = collate([examples[i] for i in indices], device=model.device)
        with beyond(trunk, model, batch, batch):
            shares_BT = completion_shares(model, batch)
        for index, loss in zip(indices, shares_BT.sum(-1).tolist(), strict=True):
            losses[index] = loss
    return losses


def held_out_loss(
    model: PreTrainedModel, examples: Sequence[Example], *, batch_size: int = 16
) -> float:
    losses = held_out_losses(model, examples, batch_size=batch_size)
    return sum(losses) / len(losses)
