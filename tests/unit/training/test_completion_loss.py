"""Losses by chunks of their logits are the losses, and hold fewer logits at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.models import FAMILIES, VOCAB_SIZE
from tests.unit.training.conftest import MakeConfig
from tests.unit.training.passes import assert_same_gradients, gradients, random_examples, set_up
from training import completion_loss
from training.config import TrainConfig
from training.data import collate
from training.objective import pass_loss

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, M = 2, 3


def one_pass(config: TrainConfig, family: str) -> tuple[float, dict[str, Tensor], list[int]]:
    """The loss of a pass, its gradients, and the numbers of logits that were made at a time."""
    torch.manual_seed(6)
    model, layers = set_up(config, family=family)
    sizes: list[int] = []

    def count(_: nn.Module, __: object, logits: Tensor) -> None:
        sizes.append(logits.numel())

    model.get_output_embeddings().register_forward_hook(count)
    batch = collate(random_examples(ROWS))
    loss, metrics, _ = pass_loss(model, layers, batch, config, torch.Generator().manual_seed(1))
    loss.backward()
    return metrics["loss"], gradients(layers), sizes


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])  # whose logits are capped after the head
@pytest.mark.parametrize("positions", [1, 3])
def test_a_loss_by_chunks_is_the_loss(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, family: str, positions: int
) -> None:
    config = make_config(selections=M)
    loss, plain, whole = one_pass(config, family)
    assert len(whole) == 1
    limit = positions * ROWS * M * VOCAB_SIZE
    monkeypatch.setattr(completion_loss, "LOGITS", limit + 1)
    loss_by_chunks, by_chunks, sizes = one_pass(config, family)
    assert max(sizes) == limit < whole[0]
    assert sum(sizes) == 2 * whole[0]  # once more for the gradients
    assert loss_by_chunks == pytest.approx(loss, rel=1e-6)
    assert_same_gradients(by_chunks, plain)


def test_one_position_is_the_least(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion_loss, "LOGITS", 1)
    *_, sizes = one_pass(make_config(selections=M), "llama")
    assert set(sizes) == {ROWS * M * VOCAB_SIZE}
