"""Packed rows are the rows: the same losses, gradients and selections, and no padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, FalconConfig, PreTrainedTokenizerFast

from remix_runtime.errors import ConfigError
from tests.models import FAMILIES, VOCAB_SIZE, tiny_model
from tests.unit.training.conftest import MakeConfig
from tests.unit.training.passes import assert_same_gradients, gradients, random_examples, set_up
from training import completion_loss, losses
from training.config import TrainConfig
from training.data import Batch, collate, read_examples
from training.losses import IGNORED
from training.objective import RoutingStats, pass_loss
from training.packing import packed, require_packable
from training.ranks import ALONE
from training.recompute import recompute_blocks
from training.router_rates import InputSizes
from training.run import run_training
from training.trainer import Trainer
from training.trunk import Trunk

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

UPPER = ["layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(8)
    return collate(random_examples(5))  # of 8, 11, 14, 17 and 20 tokens


@pytest.mark.parametrize("width", [1, 20, 31, 70, 1000])
def test_every_token_has_one_place(batch: Batch, width: int) -> None:
    found = packed(batch, width=width)
    real = batch.mask_BT
    places = found.place_BT[real]
    assert len(places.unique()) == len(places) == int(real.sum())
    assert torch.equal(found.inputs_PL.flatten()[places], batch.inputs_BT[real])
    assert torch.equal(found.apart(found.inputs_PL)[real], batch.inputs_BT[real])
    along_BT = torch.arange(real.shape[1]).expand_as(batch.inputs_BT)
    assert torch.equal(found.position_PL.flatten()[places], along_BT[real])
    assert found.inputs_PL.shape[1] <= max(width, 20)
    labels_PL = found.side_by_side(batch.labels_BT, fill=IGNORED)
    assert torch.equal(found.apart(labels_PL)[real], batch.labels_BT[real])
    assert (labels_PL == IGNORED).sum() == labels_PL.numel() - (batch.labels_BT != IGNORED).sum()
    # What is left of a row belongs to none of those in it.
    unused_PL = ~found.side_by_side(batch.mask_BT)
    starts = (found.position_PL == 0).sum()
    assert starts == len(real) + (unused_PL.any(-1)).sum()


def test_rows_fill_what_there_is_room_for(batch: Batch) -> None:
    assert packed(batch, width=1000).inputs_PL.shape == (1, 70)
    assert packed(batch, width=31).inputs_PL.shape == (3, 31)  # 20 + 11, 17 + 14, 8
    assert packed(batch, width=1).inputs_PL.shape == (4, 20)  # 11 + 8


def one_pass(
    config: TrainConfig,
    family: str,
    batch: Batch,
    *,
    again: bool = False,
) -> tuple[float, dict[str, Tensor], RoutingStats, Tensor]:
    torch.manual_seed(5)
    model, layers = set_up(config, family=family)
    if again:
        recompute_blocks(model)
    inputs = InputSizes(layers)
    trunk = Trunk.of(model) if config.method == "remix" else None
    draws = torch.Generator().manual_seed(1)
    loss, metrics, stats = pass_loss(model, layers, batch, config, draws, trunk, inputs)
    loss.backward()
    return metrics["loss"], gradients(layers), stats, inputs.settle(ALONE)


CASES = {
    "causal": {"credit": "causal"},
    "sequence": {"credit": "sequence"},
    "softmax": {"method": "softmax"},
    "lora": {"method": "lora"},
    "upper blocks": {"target_modules": UPPER},
}


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [40, 256])
def test_a_packed_pass_is_the_pass(
    make_config: MakeConfig,
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    family: str,
    width: int,
) -> None:
    monkeypatch.setattr(losses, "ROUNDING", 0.0)  # which has a test of its own
    settings: dict[str, Any] = {**CASES[case], "max_length": width}
    plain = one_pass(make_config(**settings), family, batch)
    found = one_pass(make_config(packing=True, **settings), family, batch)
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    assert_same_gradients(found[1], plain[1])
    assert torch.equal(found[2].load_Ln, plain[2].load_Ln)  # the same tokens drew the same experts
    assert found[2].entropy == pytest.approx(plain[2].entropy, rel=1e-4)
    torch.testing.assert_close(found[3], plain[3], rtol=1e-4, atol=0)


@pytest.mark.parametrize("limit", [1, completion_loss.LOGITS])
def test_packed_with_blocks_computed_again_and_losses_by_chunks(
    make_config: MakeConfig, batch: Batch, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(losses, "ROUNDING", 0.0)
    plain = one_pass(make_config(), "llama", batch)
    monkeypatch.setattr(completion_loss, "LOGITS", limit)
    found = one_pass(make_config(packing=True, max_length=50), "llama", batch, again=True)
    assert_same_gradients(found[1], plain[1])


def test_rows_that_see_each_other_would_be_noticed(
    make_config: MakeConfig, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without positions of its own a row has attention to those before it."""
    monkeypatch.setattr(losses, "ROUNDING", 0.0)
    plain = one_pass(make_config(max_length=256), "llama", batch)
    monkeypatch.setattr(
        "training.packing.PackedBatch.model_inputs", lambda self: {"input_ids": self.inputs_PL}
    )
    found = one_pass(make_config(packing=True, max_length=256), "llama", batch)
    with pytest.raises(AssertionError):
        assert_same_gradients(found[1], plain[1])


def test_fewer_tokens_go_through_the_model(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    examples, _ = read_examples(make_config().data, tokenizer, max_length=64)
    seen = {}
    for packing in (False, True):
        config = make_config(packing=packing, max_length=64, batch_size=len(examples))
        trainer = Trainer(config, tiny_model("llama"), examples)
        counts: list[int] = []
        first = trainer.model.model.layers[0].mlp.up_proj
        first.register_forward_pre_hook(lambda _, args, c=counts: c.append(args[0][..., 0].numel()))
        report = trainer.train_step()
        seen[packing] = counts[0], report.tokens
    assert seen[True][1] == seen[False][1]  # as many tokens of rows
    assert seen[True][0] < seen[False][0]


def test_a_packed_run_resumes_to_the_same_bits(make_config: MakeConfig, tmp_path: Path) -> None:
    settings = {"packing": True, "cache_trunk": True, "target_modules": UPPER, "max_length": 64}
    whole = run_training(make_config(output=str(tmp_path / "whole"), **settings))
    halves = make_config(output=str(tmp_path / "halves"), steps=2, schedule="constant", **settings)
    plain = make_config(output=str(tmp_path / "plain"), schedule="constant", **settings)
    run_training(halves)
    again = run_training(halves.model_copy(update={"steps": 6}), resume=True)
    assert again.digest == run_training(plain).digest
    assert whole.adapter is not None


def test_a_model_that_mixes_neighbours_is_refused(make_config: MakeConfig) -> None:
    alibi = FalconConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=True,
    )
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(alibi, dtype=torch.float32).eval()
    with pytest.raises(ConfigError, match="packing: found true with a base of type falcon"):
        require_packable(model)
    for family in FAMILIES:
        require_packable(tiny_model(family))
