"""What one pass of a training step is tried on: a tiny model with an adapter that matters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.models import VOCAB_SIZE, tiny_model
from training.config import TrainConfig
from training.encoding import Example
from training.objective import Layers, attach_method

ROUNDING = 3e-5
"""Of float32 in a gradient of some hundred terms, as a part of its largest element."""


def assert_same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """That sums of another order are the same sums: on any processor, an element near 0 is as far
    off as the largest one."""
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        largest = gradient.abs().max().item()
        assert largest > 0, key
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=ROUNDING * largest, msg=key)


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
