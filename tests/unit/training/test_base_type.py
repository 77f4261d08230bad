"""A base in bfloat16: which type it gets, what is still float32, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from remix_runtime.adapter.checkpoint import read_checkpoint, read_parity
from remix_runtime.adapter.layers import RemixLinear, attach_checkpoint, base_shapes
from remix_runtime.adapter.parity import model_runner, replay_parity
from remix_runtime.adapter.routing import top_k_experts
from remix_runtime.errors import TrainingError
from tests.models import tiny_model
from tests.unit.training.conftest import MakeConfig
from tests.unit.training.passes import gradients, random_examples
from training.base import load_base, pick_type
from training.config import TrainConfig
from training.data import collate, read_examples
from training.objective import Layers, SoftmaxLinear, TrainedLinear, attach_method, pass_loss
from training.run import run_training
from training.state import state_files
from training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("has_bfloat16", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, None])
def test_the_type_is_the_bases_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, stored: torch.dtype | None, has_bfloat16: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    assert pick_type("auto", stored, CPU) == torch.float32
    halved = has_bfloat16 and stored in (torch.float16, torch.bfloat16)
    assert pick_type("auto", stored, CUDA) == (torch.bfloat16 if halved else torch.float32)
    for device in (CPU, CUDA):
        assert pick_type("float32", stored, device) == torch.float32
        assert pick_type("bfloat16", stored, device) == torch.bfloat16


def one_pass(config: TrainConfig, *, dtype: torch.dtype) -> tuple[dict[str, Tensor], Layers]:
    """The gradients on a base of bfloat16's numbers that computes in `dtype`, with selections that
    do not depend on it."""
    model = load_base(config.base, dtype="bfloat16")[0].to(dtype)
    layers = attach_method(model, config)
    torch.manual_seed(2)
    for layer in layers.values():
        nn.init.normal_(layer.b_nOr, std=0.5)
        layer.select = lambda z, k: torch.arange(k).expand(*z.shape[:-1], k)
    pass_loss(model, layers, collate(random_examples(3)), config, torch.Generator())[0].backward()
    return gradients(layers), layers


@pytest.mark.parametrize("method", ["softmax", "lora"])
def test_gradients_are_those_of_float32_within_bfloat16s_rounding(
    make_config: MakeConfig, method: str
) -> None:
    config = make_config(method=method)
    exact, _ = one_pass(config, dtype=torch.float32)
    rounded, layers = one_pass(config, dtype=torch.bfloat16)
    for layer in layers.values():
        assert layer.base.weight.dtype == torch.bfloat16
        assert {p.dtype for p in layer.parameters(recurse=False)} == {torch.float32}
    for key, gradient in exact.items():
        assert rounded[key].dtype == torch.float32
        error = (rounded[key] - gradient).norm() / gradient.norm()
        assert 1e-4 < error < 0.1, (key, error)  # not float32, and not far from it


@pytest.mark.parametrize("layer_type", [RemixLinear, TrainedLinear, SoftmaxLinear])
def test_products_of_experts_are_in_the_type_of_the_base_in_training_alone(
    make_config: MakeConfig, layer_type: type[RemixLinear]
) -> None:
    base = nn.Linear(8, 6, dtype=torch.bfloat16)
    layer = layer_type(base, name="up", config=make_config().adapter)
    nn.init.normal_(layer.b_nOr)
    x_TD = torch.randn(5, 8, dtype=torch.bfloat16)
    z_Tn = layer.router_logits(x_TD)
    assert z_Tn.dtype == torch.float32
    assert torch.equal(z_Tn, x_TD.float() @ layer.router_nD.T)
    mixed_TO = layer.mixture(x_TD, z_Tn, top_k_experts(z_Tn, 2))
    in_training = layer_type is not RemixLinear
    assert mixed_TO.dtype == (torch.bfloat16 if in_training else torch.float32)
    assert layer(x_TD).dtype == torch.bfloat16


def test_an_adapter_trained_in_bfloat16_is_recorded_in_float32(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = make_config(base_dtype="bfloat16", eval_data=make_config().data, eval_every=3)
    result = run_training(config)
    assert result.adapter is not None
    model, _ = load_base(config.base)
    checkpoint = read_checkpoint(result.adapter, base=base_shapes(model))
    parity = read_parity(result.adapter)
    assert parity is not None
    layers = attach_checkpoint(model, checkpoint)
    assert replay_parity(parity, model_runner(model, layers)) == len(parity.prompts)
    plain = run_training(make_config(output=str(config.output.with_name("plain"))))
    for found, expected in zip(result.rows, plain.rows, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert [row["loss"] for row in result.rows] != [row["loss"] for row in plain.rows]


def test_a_run_goes_on_in_the_type_that_it_began_in(make_config: MakeConfig) -> None:
    run_training(make_config(base_dtype="bfloat16", steps=4))
    with pytest.raises(TrainingError, match="base_dtype = bfloat16, found float32"):
        run_training(make_config(), resume=True)
    run_training(make_config(base_dtype="bfloat16"), resume=True)


def test_a_state_of_before_the_choice_was_in_float32(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = make_config(steps=2)
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    trainer = Trainer(config, tiny_model("llama"), examples)
    trainer.run(on_step=lambda _: None, state_folder=tmp_path)
    newest = state_files(tmp_path)[-1]
    with safe_open(newest, framework="pt") as file:
        header = file.metadata()
    run = json.loads(header["run"])
    for setting in ("base_dtype", "base_quantization", "cache_trunk"):
        del run[setting]
    save_file(load_file(newest), newest, metadata={**header, "run": json.dumps(run)})
    assert Trainer(config, tiny_model("llama"), examples).resume(tmp_path) == 2
    halved = Trainer(config, tiny_model("llama").to(torch.bfloat16), examples)
    with pytest.raises(TrainingError, match="base_dtype = float32, found bfloat16"):
        halved.resume(tmp_path)
