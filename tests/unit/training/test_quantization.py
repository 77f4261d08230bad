"""A base in fewer bits: the adapter learns on it, and is recorded on the plain one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from remix_runtime.adapter.checkpoint import read_checkpoint, read_parity
from remix_runtime.adapter.layers import RemixLinear, attach_checkpoint, base_shapes
from remix_runtime.adapter.parity import model_runner, replay_parity
from remix_runtime.base.model import load_model
from remix_runtime.errors import ConfigError, TrainingError
from tests.models import tiny_config, tiny_tokenizer
from tests.unit.test_extras import check_line, hide
from tests.unit.training.conftest import MakeConfig
from tests.unit.training.passes import gradients, random_examples
from training.base import load_base
from training.config import TrainConfig
from training.data import collate
from training.objective import attach_method, pass_loss
from training.run import run_training

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

LIBRARIES = {"bnb-4bit": "bitsandbytes", "bnb-8bit": "bitsandbytes", "torchao-8bit": "torchao"}
EACH = pytest.mark.parametrize("setting", LIBRARIES)
UPPER = ["layers.1.mlp.up_proj"]
ROUNDING = {"bnb-4bit": 0.2, "bnb-8bit": 0.02, "torchao-8bit": 0.02}
"""A step of a linear's weights, as a part of the largest one in its row or block."""


@pytest.fixture
def base(tmp_path: Path) -> str:
    """Its widths are multiples of 64, the blocks of 4 bits, and its logits not far apart."""
    config = tiny_config("llama")
    config.intermediate_size, config.head_dim, config.initializer_range = 128, 32, 0.06
    torch.manual_seed(0)
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def installed(setting: str) -> None:
    library = LIBRARIES[setting]
    pytest.importorskip(library, reason=f"{library} is large, and no part of the dev extra")


def require_recorded_on_the_plain_base(config: TrainConfig, adapter: Path | None) -> None:
    assert adapter is not None
    model, _ = load_base(config.base)
    checkpoint = read_checkpoint(adapter, base=base_shapes(model))
    parity = read_parity(adapter)
    assert parity is not None
    layers = attach_checkpoint(model, checkpoint)
    assert replay_parity(parity, model_runner(model, layers)) == len(parity.prompts)


@EACH
@pytest.mark.filterwarnings("ignore")  # of the libraries, by their version and processor
def test_gradients_are_near_those_of_the_plain_base(
    make_config: MakeConfig, base: str, setting: Any
) -> None:
    installed(setting)
    config = make_config(base=base, method="lora")
    torch.manual_seed(3)
    batch = collate(random_examples(3))
    found: list[dict[str, torch.Tensor]] = []
    for model in (load_base(base)[0], load_base(base, quantization=setting)[0]):
        layers = attach_method(model, config)
        torch.manual_seed(2)
        for layer in layers.values():
            nn.init.normal_(layer.b_nOr, std=0.1)
        with torch.no_grad():  # a pass without gradients leaves those of the next
            pass_loss(model, layers, batch, config, torch.Generator())
        pass_loss(model, layers, batch, config, torch.Generator())[0].backward()
        found.append(gradients(layers))
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        error = ((found[1][key] - gradient).norm() / gradient.norm()).item()
        assert 0 < error < 2 * ROUNDING[setting], (key, error)


@EACH
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [{"gradient_checkpointing": True}, {"target_modules": UPPER, "cache_trunk": True}],
    ids=["recomputed", "trunk"],
)
def test_a_run(make_config: MakeConfig, base: str, setting: Any, settings: dict[str, Any]) -> None:
    installed(setting)
    config = make_config(base=base, base_quantization=setting, **settings)
    result = run_training(config)
    require_recorded_on_the_plain_base(config, result.adapter)
    plain = run_training(
        make_config(base=base, output=str(config.output.with_name("plain")), **settings)
    )
    for found, expected in zip(result.rows, plain.rows, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=ROUNDING[setting] / 10)
        assert 0 < found["expert_gradient_norm"] < math.inf
    assert [row["loss"] for row in result.rows] != [row["loss"] for row in plain.rows]


def rounded(base: str, how: Any, device: torch.device) -> PreTrainedModel:
    """What a library would load, by hand: linears in five bits."""
    model = load_model(base)
    for layer in model.model.layers:
        for linear in (m for m in layer.modules() if isinstance(m, nn.Linear)):
            step = linear.weight.detach().abs().max() / 16
            linear.weight.data = (linear.weight / step).round() * step
    model.config.quantization_config = {"quant_method": "by hand"}
    return model.to(device)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """`base_quantization` without a library."""
    monkeypatch.setattr(
        "training.base.load_quantized",
        lambda folder, setting, dtype, device: rounded(str(folder), setting, device),
    )
    monkeypatch.setattr("training.preparation.require_library", lambda _: None)


@pytest.mark.usefixtures("by_hand")
def test_an_adapter_is_recorded_on_the_plain_base(make_config: MakeConfig) -> None:
    config = make_config(base_quantization="bnb-4bit")
    result = run_training(config)
    require_recorded_on_the_plain_base(config, result.adapter)


@pytest.mark.usefixtures("by_hand")
def test_a_run_goes_on_on_the_base_that_it_began_on(make_config: MakeConfig) -> None:
    run_training(make_config(base_quantization="bnb-4bit", steps=4))
    with pytest.raises(TrainingError, match="base_quantization = bnb-4bit, found none"):
        run_training(make_config(), resume=True)
    run_training(make_config(base_quantization="bnb-4bit"), resume=True)


@EACH
def test_without_the_library(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, setting: Any
) -> None:
    hide(monkeypatch, LIBRARIES[setting])
    with pytest.raises(ConfigError) as caught:
        run_training(make_config(base="no/such/base", base_quantization=setting))
    check_line(str(caught.value), f"base_quantization: {setting}", LIBRARIES[setting])


def test_not_in_parts(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="base_quantization: found bnb-4bit beside shard_base"):
        make_config(base_quantization="bnb-4bit", shard_base=True)


def test_adapters_attach_to_linears_that_keep_their_weights_in_another_shape(
    make_config: MakeConfig,
) -> None:
    class Packed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 6, bias=False)
            self.weight = nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)

        def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
            return x_TD[..., :6]

    layer = RemixLinear(Packed(), name="up", config=make_config().adapter)
    assert layer(torch.ones(3, 8)).shape == (3, 6)
