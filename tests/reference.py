"""ReMix and greedy decoding written straight from the paper, one token at a time.

Slow on purpose, and without a line of the project's routing, kernels or engine in it.
Equations 4-6: z = P x, I = top-k(z), y = W x + ω · sum over i in I of B_i A_i x.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remix_runtime.adapter.checkpoint.types import Checkpoint, LayerWeights


class ReferenceLinear(nn.Module):
    """One adapted linear; `routes` collects the experts of every token, ascending."""

    def __init__(self, base: nn.Linear, weights: LayerWeights, k: int, omega: float) -> None:
        super().__init__()
        self.base, self.weights, self.k, self.omega = base, weights, k, omega
        self.routes: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        rows = []
        for x_D, y_O in zip(flat_x, flat_y, strict=True):
            z = [float(torch.dot(p_D, x_D)) for p_D in self.weights.router_nD]
            order = sorted(range(len(z)), key=lambda i: (-z[i], i))
            chosen = sorted(order[: self.k])
            self.routes.append(chosen)
            added = sum(self.weights.b_nOr[i] @ (self.weights.a_nrD[i] @ x_D) for i in chosen)
            rows.append(y_O + self.omega * added)
        return torch.stack(rows).reshape(y.shape)


def with_adapter(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, ReferenceLinear]:
    """Puts reference linears into `model`, in place."""
    placed = {}
    for name, weights in checkpoint.layers.items():
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        config = checkpoint.config
        placed[name] = ReferenceLinear(
            getattr(parent, child), weights, config.top_k, config.routing_weight
        )
        setattr(parent, child, placed[name])
    return placed


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> list[int]:
    """The most likely token again and again, the whole sequence computed anew each time."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        logits_V = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits_V.argmax()))
    return tokens[len(prompt) :]
