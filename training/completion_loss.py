"""The losses of completions, without all their logits in memory at once.

Shape suffixes: B sequences, T positions; P rows as the model sees them, L positions of those, R
positions with a loss in some row, C of them in a chunk; D width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from training.data import Batch
from training.forwards import runs
from training.losses import IGNORED, loss_shares, token_losses

LOGITS = 1 << 26
"""So many logits are in memory at a time: 256 MiB in float32, three times that with gradients."""


def completion_shares(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Each token's share of its row's mean completion loss, [B, T] (see `loss_shares`).

    The output head, the dearest product of a small model, runs only where a loss is needed. Where
    its logits are more than `LOGITS`, it runs in chunks, and once more for their gradients.
    """
    labels_PL = batch.side_by_side(batch.labels_BT, fill=IGNORED)
    positions_R = (labels_PL != IGNORED).any(0).nonzero().squeeze(-1)
    labels_PR = labels_PL[:, positions_R]
    chunk = max(1, LOGITS // (len(labels_PR) * model.config.vocab_size))
    inputs = batch.model_inputs()
    if len(positions_R) <= chunk or model.base_model is model:
        logits_PRV = model(**inputs, use_cache=False, logits_to_keep=positions_R).logits
        loss_PR = token_losses(logits_PRV, labels_PR)
    else:
        with runs(model, model.base_model.__call__):  # by the model, which gathers its weights
            body = model(**inputs, use_cache=False)
        hidden_PRD = body.last_hidden_state[:, positions_R]
        run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        chunks = zip(*(torch.split(t, chunk, dim=1) for t in (hidden_PRD, labels_PR)), strict=True)
        losses = [run(_head_losses, model, type(body), *chunk_of) for chunk_of in chunks]
        loss_PR = torch.cat(losses, 1)
    loss_PL = loss_PR.new_zeros(labels_PL.shape).index_copy(1, positions_R, loss_PR)
    return loss_shares(batch.apart(loss_PL), batch.labels_BT)


def _head_losses(
    model: PreTrainedModel, output: type[ModelOutput], hidden_PCD: Tensor, labels_PC: Tensor
) -> Tensor:
    """The losses [P, C] of hidden states that the model's body has made. What follows the body is
    left to the model: some scale their logits, or cap them."""

    def given(*_: Any, **__: Any) -> ModelOutput:
        return output(last_hidden_state=hidden_PCD)

    with runs(model.base_model, given):
        logits_PCV = model(use_cache=False).logits
    return token_losses(logits_PCV, labels_PC)
