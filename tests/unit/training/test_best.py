"""A run may end when its held-out loss falls no more, and hand out its best weights."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.errors import ConfigError, TrainingError
from tests.models import tiny_model
from tests.unit.training.conftest import ROWS, MakeConfig, write_rows
from training.best import Best
from training.config import TrainConfig
from training.data import read_examples
from training.run import STATE, RunResult, run_training
from training.state import state_files
from training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

STEPS = 40


@pytest.fixture
def overfitting(make_config: MakeConfig, tmp_path: Path) -> Any:
    """Two rows that are learned by heart, at a rate that soon forgets all others."""
    few = str(write_rows(tmp_path / "few.jsonl", ROWS[:2]))
    others = str(write_rows(tmp_path / "others.jsonl", ROWS[2:8]))

    def make(name: str, **settings: Any) -> TrainConfig:
        return make_config(
            data=few,
            eval_data=others,
            output=str(tmp_path / name),
            **{
                "steps": STEPS,
                "eval_every": 2,
                "checkpoint_every": 5,
                "batch_size": 2,
                "expert_learning_rate": 3e-2,
                "schedule": "constant",
                "dtype": "float32",
                **settings,
            },
        )

    return make


def losses(result: RunResult) -> dict[int, float]:
    return {r["step"]: r["held_out_loss"] for r in result.rows if "held_out_loss" in r}


def tensors(result: RunResult) -> dict[str, Tensor]:
    assert result.adapter is not None
    layers = read_checkpoint(result.adapter).layers
    return {f"{name}.{k}": getattr(w, k) for name, w in layers.items() for k in ("a_nrD", "b_nOr")}


def test_the_best_weights_are_those_of_a_run_that_ended_there(overfitting: Any) -> None:
    best = run_training(overfitting("best", keep="best"))
    found = losses(best)
    lowest = min(found, key=lambda step: found[step])
    assert 0 < lowest < STEPS  # or the task teaches nothing about this
    short = run_training(overfitting("short", steps=lowest))
    for key, tensor in tensors(short).items():
        assert torch.equal(tensor, tensors(best)[key]), key
    last = run_training(overfitting("last"))
    assert any(not torch.equal(t, tensors(best)[key]) for key, t in tensors(last).items())
    assert best.adapter is not None
    card = (best.adapter / "README.md").read_text()
    assert f"After {lowest} steps" in card
    assert f"| held-out loss | {found[lowest]:.4f} |" in card


def test_a_resumed_run_knows_the_best_weights_of_before(overfitting: Any) -> None:
    whole = run_training(overfitting("whole", keep="best"))
    found = losses(whole)
    lowest = min(found, key=lambda step: found[step])
    first = overfitting("halves", keep="best", steps=lowest + 6)
    run_training(first)
    shutil.rmtree(first.output / "adapter")
    second = run_training(overfitting("halves", keep="best"), resume=True)
    assert losses(second) == found
    assert second.digest == whole.digest


def test_a_run_ends_when_its_loss_does_not_fall(overfitting: Any) -> None:
    shown = io.StringIO()
    config = overfitting("patient", patience=3)
    result = run_training(config, console=Console(file=shown, width=200))
    found = losses(result)
    lowest = min(found, key=lambda step: found[step])
    assert result.rows[-1]["step"] == lowest + 3 * 2 < STEPS
    assert (
        f"ended at step {lowest + 6}: no held-out loss below that of {lowest}" in shown.getvalue()
    )
    assert state_files(config.output / STATE)[-1].stem == f"state-{lowest + 6:07d}"
    again = run_training(config, resume=True)  # it has ended, and stays so
    assert again.digest == result.digest
    assert len(again.rows) == len(result.rows)


def test_put_into_gives_the_weights_back(make_config: MakeConfig) -> None:
    best = Best(keeps_weights=True)
    config = make_config()
    rows: Any = [object()]
    trainer = Trainer(config, tiny_model("llama"), rows)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    best.see(1, 2.0, trainer.parameters)
    with torch.no_grad():
        for parameter in trainer.parameters.values():
            parameter.add_(1)
    best.see(2, 2.0, trainer.parameters)  # no lower
    best.see(3, float("nan"), trainer.parameters)
    other = Best(keeps_weights=True)
    other.take(best.state())
    assert (other.step, other.loss) == (1, 2.0)
    other.put_into(trainer.parameters)
    assert all(torch.equal(p, before[name]) for name, p in trainer.parameters.items())


@pytest.mark.parametrize("settings", [{"keep": "best"}, {"patience": 2}])
def test_without_held_out_rows_there_is_no_best(
    make_config: MakeConfig, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}: found without held-out rows"):
        make_config(**settings)
    make_config(keep="last", patience=None)  # as a model card has it


def test_best_weights_that_were_not_kept_are_not_made_up(overfitting: Any) -> None:
    run_training(overfitting("run", steps=4))
    with pytest.raises(TrainingError, match=r"keep: found best with a state .* not its weights"):
        run_training(overfitting("run", steps=6, keep="best"), resume=True)
    assert run_training(overfitting("run", steps=6), resume=True).rows[-1]["step"] == 6


def test_losses_that_are_no_numbers_are_never_the_best(
    overfitting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_held_out_loss", lambda _: float("nan"))
    shown = io.StringIO()
    config = overfitting("run", patience=2, keep="best")
    result = run_training(config, console=Console(file=shown, width=200))
    assert result.rows[-1]["step"] == 2 * 2
    assert "no held-out loss was a number: the adapter is of the last step" in shown.getvalue()


def test_a_step_that_is_taken_back_leaves_no_best_behind(
    overfitting: Any, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = overfitting("run", keep="best", eval_every=1)
    rows = read_examples(config.data, tokenizer, max_length=64)[0]
    held_out = read_examples(config.eval_data, tokenizer, max_length=64)[0]
    trainer = Trainer(config, tiny_model("llama"), rows, held_out)
    for _ in range(3):
        trainer.train_step()
    monkeypatch.setattr(Trainer, "_held_out_loss", lambda _: 0.001)
    trainer.train_step()
    assert trainer.best.step == 4
    with torch.no_grad():
        next(iter(trainer.parameters.values())).fill_(torch.nan)
    with pytest.raises(TrainingError, match="step 5: the loss is nan"):
        trainer.train_step()
    assert trainer.step == 3
    assert trainer.best.step <= 3


def test_the_best_of_other_rows_is_forgotten(overfitting: Any) -> None:
    """A run may go on without held-out rows, and then with others."""
    run_training(overfitting("run", steps=4))
    first = load_file(state_files(overfitting("run").output / STATE)[-1])
    assert first["more/lowest_loss"][0] > 0
    without = overfitting("run", steps=6).model_copy(update={"eval_data": None})
    run_training(without, resume=True)
    assert "more/lowest_loss" not in load_file(state_files(without.output / STATE)[-1])
