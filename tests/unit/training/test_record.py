"""What an adapter tells of its training: the load of its experts as served, and curves."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from remix_runtime.adapter.checkpoint import read_checkpoint, read_curves
from remix_runtime.adapter.checkpoint.training_file import MAX_POINTS, TRAINING_FILE
from remix_runtime.adapter.counting import count_load
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.contracts import TrainedLoad
from tests.models import random_checkpoint, tiny_model
from tests.unit.training.conftest import MakeConfig
from training import record
from training.base import load_base
from training.data import read_examples
from training.encoding import Example
from training.record import curves_of, load_sample
from training.run import run_training

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")


def test_a_run_writes_the_load_that_its_adapter_has_on_the_training_rows(
    make_config: MakeConfig,
) -> None:
    config = make_config(expert_learning_rate=3e-2, eval_data=str(make_config().data), eval_every=3)
    result = run_training(config)
    assert result.adapter is not None
    checkpoint = read_checkpoint(result.adapter)
    model, tokenizer = load_base(config.base)
    layers = attach_checkpoint(model, checkpoint)
    examples, _ = read_examples(config.data, tokenizer, max_length=256)
    expected = count_load(model, layers, [example.tokens[:-1] for example in examples])
    assert checkpoint.trained_load is not None
    assert checkpoint.trained_load.tokens == sum(len(e.tokens) - 1 for e in examples)
    found = {name: list(counts) for name, counts in checkpoint.trained_load.modules.items()}
    assert found == expected.modules
    curves = read_curves(result.adapter)
    assert curves["step"] == [row["step"] for row in result.rows]
    assert curves["loss"] == [row["loss"] for row in result.rows]
    held_out = [(r["step"], r["held_out_loss"]) for r in result.rows if "held_out_loss" in r]
    assert curves["held_out_loss"] == held_out
    assert len(held_out) == 2


def test_an_adapter_that_routes_nothing_has_curves_alone(make_config: MakeConfig) -> None:
    result = run_training(make_config(method="lora"))
    assert result.adapter is not None
    assert (result.adapter / TRAINING_FILE).is_file()
    assert read_checkpoint(result.adapter).trained_load is None
    assert len(read_curves(result.adapter)["loss"]) == 6


def counted(load: TrainedLoad, module: str) -> list[int]:
    return list(load.modules[module])


def test_the_load_is_the_top_k_whatever_training_draws() -> None:
    model = tiny_model("llama")
    layers = attach_checkpoint(model, random_checkpoint(model, n=4, k=2))
    sequences = [[1, 2, 3, 4], [7], [5, 6]]
    load = count_load(model, layers, sequences)

    def draw(z_Tn: torch.Tensor, k: int) -> torch.Tensor:
        return torch.zeros(*z_Tn.shape[:-1], k, dtype=torch.int64)

    model.train()
    for layer in layers.values():
        layer.select = draw
    assert count_load(model, layers, sequences) == load
    assert model.training
    assert all(layer.select is draw for layer in layers.values())
    assert load.tokens == 7
    assert load.modules.keys() == layers.keys()
    for name, layer in layers.items():
        assert sum(load.modules[name]) == 2 * 7
        assert len(load.modules[name]) == len(layer.router_nD) == 4
    # Each sequence by itself, and nothing of one in another.
    parts = [count_load(model, layers, [sequence]) for sequence in sequences]
    for name in layers:
        sums = [sum(column) for column in zip(*(counted(p, name) for p in parts), strict=True)]
        assert sums == load.modules[name]


def example(*tokens: int) -> Example:
    return Example(tokens=tokens, is_target=(True,) * len(tokens), prompt_length=1)


@pytest.fixture
def hundred_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "LOAD_TOKENS", 100)


@pytest.mark.usefixtures("hundred_tokens")
def test_the_sample_is_bounded_and_drawn_from_all_rows() -> None:
    rows = [example(*range(i, i + 11)) for i in range(1000)]
    sample = list(load_sample(rows))
    assert sum(map(len, sample)) == 100
    assert all(tokens == list(range(tokens[0], tokens[0] + 10)) for tokens in sample)
    assert max(tokens[0] for tokens in sample) > 500
    assert sample == list(load_sample(rows))
    (one,) = load_sample([[example(*range(300))]])
    assert one == list(range(100))
    assert list(load_sample([example(1), [example(1, 2), example(3, 4, 5)]])) == [[1], [3, 4]]


def row(step: int, loss: float, **more: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "router_entropy": 1.0, **more}


def test_long_curves_are_thinned_to_means() -> None:
    log = [row(step, float(step)) for step in range(1, 1202)]
    curves = curves_of(log)
    assert curves["step"] == [*range(3, 1201, 3), 1201]
    assert curves["loss"] == [*(float(step - 1) for step in range(3, 1201, 3)), 1201.0]
    assert set(curves) == {"step", "loss", "router_entropy"}
    log = [row(step, 1.0, held_out_loss=float(step)) for step in range(1, 1002)]
    held_out = curves_of(log)["held_out_loss"]
    assert held_out[-1] == (1001, 1001.0)
    assert 300 < len(held_out) <= MAX_POINTS
    assert {b[0] - a[0] for a, b in pairwise(held_out)} == {3}


def test_what_is_no_number_is_left_out() -> None:
    log = [row(1, math.nan), row(2, 2.0, held_out_loss=math.inf), row(3, 3.0, held_out_loss=1.0)]
    curves = curves_of(log)
    assert curves["step"] == [2, 3]
    assert curves["loss"] == [2.0, 3.0]
    assert curves["held_out_loss"] == [(3, 1.0)]
    assert curves_of([]) == {}
    assert curves_of([row(1, math.nan)]) == {}
