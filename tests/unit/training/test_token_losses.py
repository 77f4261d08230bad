"""The loss of each token: PyTorch's cross entropy, bit for bit, in less memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from training import losses
from training.losses import IGNORED, token_losses

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def example(vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels of which some are ignored, and a gradient with zeros in it."""
    generator = torch.Generator().manual_seed(0)
    logits_BRV = (3 * torch.randn(2, 7, vocabulary, generator=generator)).to(dtype)
    labels_BR = torch.randint(vocabulary, (2, 7), generator=generator)
    labels_BR[0, 2:4] = labels_BR[1, 6] = IGNORED
    gradient_BR = torch.randn(2, 7, generator=generator)
    gradient_BR[:, ::3] = 0
    return logits_BRV.requires_grad_(), labels_BR, gradient_BR


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("at_once", [1, 300, 1 << 22], ids=["row by row", "by threes", "all"])
def test_losses_and_gradients_are_pytorch_s(
    monkeypatch: pytest.MonkeyPatch, at_once: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(losses, "_AT_ONCE", at_once)
    logits_BRV, labels_BR, gradient_BR = example(97, dtype)
    found_BR = token_losses(logits_BRV, labels_BR)
    (found,) = torch.autograd.grad(found_BR, logits_BRV, gradient_BR)
    flat = F.cross_entropy(logits_BRV.float().flatten(0, 1), labels_BR.flatten(), reduction="none")
    (wanted,) = torch.autograd.grad(flat.view(2, 7), logits_BRV, gradient_BR)
    assert torch.equal(found_BR, flat.view(2, 7))
    assert torch.equal(found.view(BITS[dtype]), wanted.view(BITS[dtype]))


def test_a_second_gradient_is_an_error_and_not_another_number() -> None:
    logits_BRV, labels_BR, _ = example(97, torch.float32)
    loss = token_losses(logits_BRV, labels_BR).sum()
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


class Made(TorchDispatchMode):
    """Notes what makes tensors of at least so many numbers in memory of their own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.by: list[str] = []
        self._size = size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().nbytes() >= 4 * self._size:
            given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
            if out.untyped_storage().data_ptr() not in given:
                self.by.append(func.overloadpacket.__name__)
        return out


def test_the_gradient_of_logits_takes_no_memory_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "_AT_ONCE", 2 * 97)
    hidden_BRV, labels_BR, gradient_BR = example(97, torch.float32)
    with Made(hidden_BRV.numel()) as made:
        token_losses(hidden_BRV.exp(), labels_BR).backward(gradient_BR)
    # The logits, their log-probabilities, the gradient of what the logits are made from.
    assert made.by == ["exp", "_log_softmax", "mul"]
