"""What one pass of a training step is tried on: a tiny model with an adapter that matters."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.models import VOCAB_SIZE, tiny_model
from training.config import TrainConfig
from training.encoding import Example
from training.objective import Layers, attach_method


def random_examples(count: int = 2) -> list[Example]:
    """Rows of unequal length with random targets."""
    examples = []
    for index in range(count):
        length = 9 + 3 * index
        target = torch.rand(length) < 0.5
        target[-1] = True
        examples.append(
            Example(
                tokens=tuple(torch.randint(0, VOCAB_SIZE, (length,)).tolist()),
                is_target=tuple(target.tolist()),
                prompt_length=4,
            )
        )
    return examples


def set_up(config: TrainConfig, *, family: str = "llama") -> tuple[PreTrainedModel, Layers]:
    """A model with trainable layers whose B is not zero and whose routers have preferences."""
    model = tiny_model(family)
    layers = attach_method(model, config)
    for layer in layers.values():
        torch.nn.init.normal_(layer.b_nOr, std=0.5)
        torch.nn.init.normal_(layer.router_nD, std=0.2)
    return model, layers


def gradients(layers: Layers) -> dict[str, Tensor]:
    found = {
        f"{name}.{kind}": p.grad.clone()
        for name, layer in layers.items()
        for kind, p in layer.named_parameters(recurse=False)
        if p.grad is not None
    }
    for layer in layers.values():
        layer.zero_grad()
    return found
