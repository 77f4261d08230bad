"""`target_modules` as all linears or as a pattern, and `epochs` as steps."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.layers import base_shapes
from remix_runtime.errors import ConfigError
from tests.models import ATTENTION, MLP, tiny_model
from tests.unit.training.conftest import ROWS, MakeConfig
from training.config import TrainConfig
from training.preparation import steps_of
from training.run import run_training
from training.targets import ALL, are_names, as_targets, resolved

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

SHAPES = base_shapes(tiny_model("llama"))


def test_all_linears_are_named_by_their_ends() -> None:
    assert resolved((ALL,), SHAPES) == tuple(sorted({*MLP, *ATTENTION}))


def test_a_pattern_is_for_whole_names() -> None:
    targets = as_targets(r"model\.layers\.1\.mlp\.(up|down)_proj")
    assert not are_names(targets)
    assert resolved(targets, SHAPES) == (
        "model.layers.1.mlp.down_proj",
        "model.layers.1.mlp.up_proj",
    )
    with pytest.raises(ConfigError, match="matches no whole name of a linear layer"):
        resolved(as_targets("up_proj|down_proj"), SHAPES)


def test_names_stay_as_they_are() -> None:
    for names in (["up_proj"], ["layers.1.mlp.up_proj", "q_proj"]):
        assert as_targets(names) == names
        assert are_names(tuple(names))
        assert resolved(tuple(names), SHAPES) == tuple(names)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (ALL, {*MLP, *ATTENTION}),
        (r".*layers\.1\.self_attn\.[qv]_proj", None),
    ],
)
def test_a_run_states_the_names(
    make_config: MakeConfig, setting: str, expected: set[str] | None
) -> None:
    config = make_config(target_modules=setting, steps=2)
    result = run_training(config)
    assert result.adapter is not None
    found = set(read_checkpoint(result.adapter).config.target_modules)
    assert found == (expected or {f"model.layers.1.self_attn.{name}_proj" for name in "qv"})
    run_training(config.model_copy(update={"steps": 3}), resume=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("", "target_modules: found '', expected"),
        ("(", r"target_modules: found '\(', expected a list of names, all-linear, or a pattern"),
        ([], r"target_modules: found \[\], expected"),
        ("up_proj", r"found 'up_proj', expected a list of names, .* as \.\*\\\.\[qv\]_proj"),
        (7, "target_modules: found 7, expected"),
    ],
)
def test_what_names_nothing_is_refused(make_config: MakeConfig, setting: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(target_modules=setting)


def test_epochs_are_steps_that_meet_the_rows_so_often(make_config: MakeConfig) -> None:
    def steps(**settings: Any) -> int:
        count = settings.pop("processes", 1)
        epochs = settings.pop("epochs", None)
        config = make_config(**settings).model_copy(update={"steps": 99, "epochs": epochs})
        return steps_of(config, len(ROWS), processes=count)

    assert len(ROWS) == 12
    assert steps() == 99
    assert steps(epochs=1, batch_size=3) == 4
    assert steps(epochs=2.5, batch_size=3) == 10
    assert steps(epochs=1, batch_size=5) == 2  # two rows fill no batch
    assert steps(epochs=1, batch_size=3, gradient_accumulation=2) == 2
    assert steps(epochs=1, batch_size=3, gradient_accumulation=3) == 2  # rounded up
    assert steps(epochs=1, batch_size=3, processes=2) == 2
    assert steps(epochs=0.01, batch_size=100) == 1


def test_a_run_of_epochs_ends_with_them(make_config: MakeConfig) -> None:
    config = make_config().model_copy(update={"epochs": 2.0})
    result = run_training(config)
    assert len(result.rows) == 8
    # The recipe in its card is one that can be run.
    assert result.adapter is not None
    card = (result.adapter / "README.md").read_text()
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert TrainConfig.model_validate({**settings, "output": "x"}).steps == 8
    with pytest.raises(ConfigError, match="epochs: found beside steps, expected one of them"):
        make_config(epochs=1, steps=4)
    with pytest.raises(ConfigError, match="epochs: found 0, expected"):
        make_config(epochs=0)
