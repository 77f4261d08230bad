"""A whole run: its folder, its adapter, its commands."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

from remix_runtime.adapter.checkpoint import read_checkpoint, read_parity
from remix_runtime.adapter.layers import attach_checkpoint, base_shapes
from remix_runtime.adapter.parity import model_runner, replay_parity
from remix_runtime.errors import CheckpointError, ConfigError, DataError
from tests.models import VOCAB_SIZE, tiny_model
from tests.unit.training.conftest import MakeConfig
from training.base import load_base
from training.commands import evaluate, train
from training.config import TrainConfig
from training.data import read_examples
from training.encoding import Example
from training.evaluation import compare_with_base
from training.held_out import held_out_loss
from training.log import METRICS
from training.run import run_training

pytestmark = pytest.mark.usefixtures("one_thread")

PNG = b"\x89PNG\r\n\x1a\n"
app = typer.Typer()
app.command()(train)
app.command("eval")(evaluate)


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_folder_of_a_run_holds_what_the_help_promises(make_config: MakeConfig) -> None:
    config = make_config(eval_data=str(make_config().data), eval_every=3, steps=5)
    shown = io.StringIO()
    result = run_training(config, console=Console(file=shown, force_terminal=True, width=200))
    assert "5/5" in shown.getvalue()
    for word in ("loss", "entropy", "support 2.00", "load", "tok/s"):
        assert word in shown.getvalue()
    out = config.output
    rows = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    assert rows == result.rows
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert ["held_out_loss" in row for row in rows] == [False, False, True, False, True]
    assert all(len(row["expert_load"]) == 4 for row in rows)
    for name in ("learning_curve.png", "expert_load.png"):
        assert (out / name).read_bytes().startswith(PNG)
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [e.step for e in board.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert board.Scalars("loss")[2].value == pytest.approx(rows[2]["loss"])
    assert "expert_load/3" in board.Tags()["scalars"]


def test_the_adapter_is_the_trained_model(make_config: MakeConfig) -> None:
    config = make_config(expert_learning_rate=3e-2)
    result = run_training(config)
    assert result.adapter == config.output / "adapter"
    model, _ = load_base(config.base)
    checkpoint = read_checkpoint(result.adapter, base=base_shapes(model))
    assert checkpoint.digest == result.digest
    wanted = dataclasses.asdict(config.adapter)
    wanted["target_modules"] = tuple(sorted(wanted["target_modules"]))
    assert dataclasses.asdict(checkpoint.config) == wanted
    ids = torch.randint(0, VOCAB_SIZE, (1, 10))
    with torch.no_grad():
        base_logits = model(ids).logits
        layers = attach_checkpoint(model, checkpoint)
        assert not torch.allclose(model(ids).logits, base_logits, atol=1e-3)
        parity = read_parity(result.adapter)
        assert parity is not None
        assert replay_parity(parity, model_runner(model, layers)) == len(parity.prompts) == 4
    card = (result.adapter / "README.md").read_text()
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert TrainConfig.model_validate({**settings, "output": "x"}).adapter == config.adapter
    # The card goes where the adapter goes: no folder of the training machine in it but the base's.
    assert str(config.data.parent) not in card


def test_base_name_stands_for_the_base(make_config: MakeConfig) -> None:
    config = make_config(base_name="someone/tiny", steps=1)
    adapter = run_training(config).adapter
    assert adapter is not None
    assert read_checkpoint(adapter).config.base_model_name_or_path == "someone/tiny"
    assert config.base not in (adapter / "README.md").read_text()


def test_plain_lora_is_exported_as_one_expert(make_config: MakeConfig) -> None:
    config = make_config(method="lora", expert_learning_rate=3e-2)
    result = run_training(config)
    assert result.adapter is not None
    checkpoint = read_checkpoint(result.adapter)
    assert (checkpoint.config.num_experts, checkpoint.config.top_k, checkpoint.config.r) == (
        1,
        1,
        4,
    )
    model = tiny_model("llama")
    weights = checkpoint.layers["model.layers.0.mlp.up_proj"]
    linear = model.get_submodule("model.layers.0.mlp.up_proj")
    x_TD = torch.randn(3, 64)
    delta = checkpoint.config.routing_weight * x_TD @ weights.a_nrD[0].T @ weights.b_nOr[0].T
    layers = attach_checkpoint(model, checkpoint)
    torch.testing.assert_close(layers["model.layers.0.mlp.up_proj"](x_TD), linear(x_TD) + delta)
    assert delta.abs().max() > 1e-3


def test_the_softmax_mixture_trains_but_writes_no_adapter(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(method="softmax", steps=2)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    assert "not servable" in command("train", path)
    assert not (config.output / "adapter").exists()
    assert (config.output / "learning_curve.png").exists()


def test_an_output_folder_with_a_run_is_not_overwritten_by_accident(
    make_config: MakeConfig,
) -> None:
    config = make_config(steps=2)
    first = run_training(config)
    kept = config.output / "notes.txt"
    kept.write_text("mine")
    with pytest.raises(ConfigError, match="holds a run already; go on with --resume"):
        run_training(config)
    with pytest.raises(ConfigError, match="found --resume and --overwrite"):
        run_training(config, resume=True, overwrite=True)
    assert run_training(config, resume=True).digest == first.digest
    changed = make_config(steps=2, seed=1)
    assert run_training(changed, overwrite=True).digest != first.digest
    assert kept.read_text() == "mine"


def test_a_run_is_deleted_only_for_one_that_can_begin(make_config: MakeConfig) -> None:
    first = run_training(make_config(steps=2))
    assert first.adapter is not None
    for settings in ({"data": "missing.jsonl"}, {"base": "no/such/base"}, {"num_experts": 300}):
        with pytest.raises((ConfigError, DataError)):
            run_training(make_config(steps=2, **settings), overwrite=True)
        assert read_checkpoint(first.adapter).digest == first.digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 300}, "num_experts"),
        ({"target_modules": ["up_proj", "up_proj"]}, "expected every name once"),
        ({"base_name": "x\ty"}, "base_model_name_or_path"),
        ({"r": 5000}, r"\br\b"),
    ],
)
def test_settings_that_no_adapter_can_hold_are_refused_before_training(
    make_config: MakeConfig, settings: dict[str, Any], message: str
) -> None:
    config = make_config(**settings)
    with pytest.raises(ConfigError, match=message) as caught:
        run_training(config)
    assert "\n" not in str(caught.value)
    assert not config.output.exists()


def test_fewer_steps_than_the_saved_state_has_are_refused(make_config: MakeConfig) -> None:
    run_training(make_config(steps=4))
    with pytest.raises(ConfigError, match="steps: found 3, expected at least 4"):
        run_training(make_config(steps=3), resume=True)


def test_a_broken_log_does_not_stop_a_resume(make_config: MakeConfig) -> None:
    config = make_config(steps=4)
    first = run_training(config)
    metrics = config.output / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([lines[0], '{"step": 2, "lo', *lines[2:], "null"]) + "\n")
    again = run_training(config, resume=True)
    assert again.digest == first.digest
    assert [row["step"] for row in again.rows] == [1, 3, 4]
    metrics.unlink()
    assert run_training(config, resume=True).digest == first.digest
    assert "not recorded" in (config.output / "adapter" / "README.md").read_text()


def test_the_settings_are_listed_with_their_defaults() -> None:
    listed = command("train", "--settings")
    for word in ("router_logits_per_step", "1.0", "gate_proj", "required"):
        assert word in listed


def test_cut_rows_are_counted_aloud(make_config: MakeConfig) -> None:
    shown = io.StringIO()
    config = make_config(max_length=10, too_long="truncate", steps=1)
    run_training(config, console=Console(file=shown, width=300))
    assert "rows cut to 10 tokens" in shown.getvalue()
    with pytest.raises(DataError, match=r"rows\.jsonl:\d+: found 1\d tokens"):
        run_training(make_config(max_length=10, steps=1), overwrite=True)


def test_a_base_that_is_not_there(make_config: MakeConfig, tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="base: there is no folder") as caught:
        run_training(make_config(base=missing))
    assert "\n" not in str(caught.value)


def test_the_adapter_is_written_in_bfloat16_and_parity_is_of_the_rounded_weights(
    make_config: MakeConfig,
) -> None:
    config = make_config(steps=20, expert_learning_rate=3e-2)
    result = run_training(config)
    assert result.adapter is not None
    checkpoint = read_checkpoint(result.adapter)
    for weights in checkpoint.layers.values():
        for tensor in (weights.a_nrD, weights.b_nOr, weights.router_nD):
            assert torch.equal(tensor, tensor.bfloat16().float())
    model, _ = load_base(config.base)
    parity = read_parity(result.adapter)
    assert parity is not None
    assert replay_parity(parity, model_runner(model, attach_checkpoint(model, checkpoint)))
    exact = run_training(
        make_config(steps=20, expert_learning_rate=3e-2, dtype="float32"), overwrite=True
    )
    assert exact.adapter is not None
    assert exact.digest != result.digest


def test_eval_scores_the_adapter_against_the_base(make_config: MakeConfig, tmp_path: Path) -> None:
    rates = {"expert_learning_rate": 3e-2, "router_learning_rate": 3e-2}
    config = make_config(steps=60, dtype="float32", **rates)
    adapter = run_training(config).adapter
    assert adapter is not None
    printed = json.loads(command("eval", adapter, config.data, "--json", "--limit", 8))
    assert printed["base"]["rows"] == printed["adapter"]["rows"] == 8
    assert printed["adapter"]["loss"] < 0.3 * printed["base"]["loss"]
    assert printed["base"]["accuracy"] == 0
    assert printed["adapter"]["accuracy"] > 0.5
    table = command("eval", adapter, config.data)
    assert "exact match" in table
    assert "adapter" in table
    # The reported loss is the trainer's own held-out loss.
    model, tokenizer = load_base(config.base)
    scores = compare_with_base(adapter, config.data, batch_size=5)
    attach_checkpoint(model, read_checkpoint(adapter))
    loss = held_out_loss(model, run_examples(config, tokenizer))
    assert scores["adapter"].loss == pytest.approx(loss, rel=1e-4)
    with pytest.raises(CheckpointError):
        command("eval", tmp_path, config.data)


def run_examples(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    return read_examples(config.data, tokenizer, max_length=64)[0]
