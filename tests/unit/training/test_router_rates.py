"""A router's rate is in logits per step, whatever the size of its layer's inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedTokenizerFast

from remix_runtime.errors import ConfigError
from tests.models import VOCAB_SIZE, tiny_model
from tests.unit.training.conftest import MakeConfig
from tests.unit.training.passes import random_examples
from training.data import Batch, read_examples
from training.ranks import ALONE
from training.router_rates import InputSizes, watching
from training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

STEP = 0.25


def trainer_on(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast, **more: object
) -> Trainer:
    config = make_config(warmup_steps=0, router_logits_per_step=STEP, **more)
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    trainer = Trainer(config, tiny_model("llama"), examples)
    for layer in trainer.layers.values():
        nn.init.normal_(layer.b_nOr, std=0.1)
    return trainer


def test_the_median_is_over_tokens_and_not_over_padding() -> None:
    linear = nn.Identity()
    sizes = InputSizes({"only": linear})
    x_BTD = torch.tensor([[[1.0, -1.0], [2.0, 2.0], [900.0, 100.0]], [[3.0, -3.0]] * 3])
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    ids_BT = torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch(ids_BT, ids_BT, mask_BT)
    with watching(sizes, batch):
        linear(x_BTD)
    linear(x_BTD * 1000)  # nobody looks
    assert sizes.settle(ALONE).tolist() == [4.0]  # of 2, 4, 1000 and 6, the lower one in the middle
    with watching(sizes, batch):
        linear(x_BTD * 1000)  # they are known
    assert sizes.settle(ALONE).tolist() == [4.0]


def test_a_step_moves_the_logits_of_a_layer_by_the_setting(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Whatever the size of its inputs: those of one layer are made a thousand times larger."""
    trainer = trainer_on(make_config, tokenizer)
    large = "model.layers.1.mlp.down_proj"
    layer = trainer.layers[large]

    def enlarge(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] * 1000,)

    layer.register_forward_pre_hook(enlarge)
    layer.b_nOr.data /= 1000
    before = {name: layer.router_nD.detach().clone() for name, layer in trainer.layers.items()}
    trainer.train_step()
    size_L = trainer._sizes.median_L
    assert size_L is not None
    found = dict(zip(trainer.layers, size_L.tolist(), strict=True))
    assert found[large] > 100 * found["model.layers.0.mlp.down_proj"]
    for name, layer in trainer.layers.items():
        moved_nD = (layer.router_nD - before[name]).abs()
        # Adam's first step moves a weight by its rate, wherever there is a gradient.
        assert moved_nD.max().item() * found[name] == pytest.approx(STEP, rel=0.02), name


def test_the_sizes_are_part_of_the_state(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = trainer_on(make_config, tokenizer, steps=3)
    first.run(state_folder=tmp_path, on_step=lambda _: None)
    again = trainer_on(make_config, tokenizer, steps=6)
    again.resume(tmp_path)
    assert again._sizes.median_L is not None
    assert torch.equal(again._sizes.median_L, first._sizes.settle(ALONE))


def test_nothing_is_measured_where_no_router_needs_it(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    examples, _ = read_examples(make_config().data, tokenizer, max_length=64)
    for settings in ({"router_learning_rate": 0.01}, {"method": "lora"}, {"router": "random"}):
        trainer = Trainer(make_config(**settings), tiny_model("llama"), examples)
        trainer.train_step()
        assert trainer._sizes.median_L is None
        assert not trainer._sizes._seen


def test_a_layer_that_sees_no_rows_is_named(make_config: MakeConfig) -> None:
    """OPT makes one row of all tokens before its feed-forward part."""
    shape = OPTConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, ffn_dim=64, num_hidden_layers=1,
        num_attention_heads=2, word_embed_proj_dim=32,
    )  # fmt: skip
    torch.manual_seed(3)
    for settings in ({}, {"router_learning_rate": 1e-2}):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()
        config = make_config(target_modules=["fc1", "fc2"], **settings)
        trainer = Trainer(config, model, random_examples(4))
        with pytest.raises(ConfigError, match=r"target_modules: found .*fc1, which sees"):
            trainer.train_step()
