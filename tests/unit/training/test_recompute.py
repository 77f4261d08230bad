"""Gradient checkpointing: the same selections, the same bits, less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from remix_runtime.adapter.layers import Routed
from remix_runtime.adapter.routing import top_k_experts
from remix_runtime.errors import ConfigError
from tests.models import FAMILIES, tiny_model
from tests.unit.training.conftest import MakeConfig
from tests.unit.training.passes import gradients, random_examples, set_up
from training import recompute
from training.config import TrainConfig
from training.data import collate, read_examples
from training.objective import pass_loss
from training.recompute import recompute_blocks
from training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = {
    "causal": {"credit": "causal"},
    "sequence": {"credit": "sequence"},
    "softmax": {"method": "softmax"},
    "lora": {"method": "lora"},
}


def one_pass(config: TrainConfig, family: str, *, again: bool) -> tuple[dict[str, Tensor], int]:
    """The gradients of a pass, and the bytes that are kept for them."""
    torch.manual_seed(5)
    model, layers = set_up(config, family=family)
    if again:
        recompute_blocks(model)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, *_ = pass_loss(
            model,
            layers,
            collate(random_examples(3)),
            config,
            torch.Generator().manual_seed(1),
        )
    loss.backward()
    for layer in layers.values():  # all is as it was before the pass
        assert layer.trace is None
        assert layer.select is top_k_experts
    return gradients(layers), sum(kept.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_the_gradients_have_the_same_bits(
    make_config: MakeConfig, settings: dict[str, str], family: str
) -> None:
    config = make_config(**settings)
    plain, kept = one_pass(config, family, again=False)
    again, kept_again = one_pass(config, family, again=True)
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        assert gradient.abs().max() > 0, key
        assert torch.equal(again[key], gradient), key
    assert kept_again < 0.6 * kept


def test_a_block_that_draws_again_has_other_gradients(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above is for: it sees selections that are not kept."""
    plain, _ = one_pass(make_config(), "llama", again=False)

    def draws_again(layers: list[Routed]) -> tuple[Any, Any]:
        rules = {layer: layer.select for layer in layers}

        def rule(layer: Routed, z_Tn: Tensor, k: int) -> Tensor:
            return rules[layer](z_Tn.detach(), k)

        selecting = recompute._selecting
        return selecting(layers, rule, traced=True), selecting(layers, rule, traced=False)

    monkeypatch.setattr(recompute, "_first_and_again", draws_again)
    again, _ = one_pass(make_config(), "llama", again=True)
    assert not all(torch.equal(again[key], gradient) for key, gradient in plain.items())


def test_a_run_may_begin_without_and_go_on_with_it(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    examples, _ = read_examples(make_config().data, tokenizer, max_length=64)
    whole = Trainer(make_config(), tiny_model("llama"), examples)
    whole.run(on_step=lambda _: None)
    begun = Trainer(make_config(steps=2), tiny_model("llama"), examples)
    begun.run(on_step=lambda _: None, state_folder=tmp_path)
    config = make_config(gradient_checkpointing=True)
    resumed = Trainer(config, tiny_model("llama"), examples)
    begun_again = Trainer(make_config(), tiny_model("llama"), examples)
    assert resumed.resume(tmp_path) == begun_again.resume(tmp_path) == 2
    resumed.run(on_step=lambda _: None)
    begun_again.run(on_step=lambda _: None)
    for name, parameter in begun_again.parameters.items():
        assert torch.equal(resumed.parameters[name], parameter), name


def test_a_base_without_known_blocks_is_refused(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = set_up(make_config())
    monkeypatch.setattr("training.blocks.GradientCheckpointingLayer", type("Other", (), {}))
    with pytest.raises(ConfigError, match="gradient_checkpointing: found true with a base of type"):
        recompute_blocks(model)
