"""`remix train --dry-run` says what a run would be, and leaves nothing behind."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import typer
import yaml
from rich.console import Console
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from remix_runtime.errors import DataError
from tests.models import tiny_model
from tests.unit.training.conftest import ROWS, MakeConfig, write_rows
from training.commands import train
from training.data import read_examples
from training.dry_run import dry_run, learned
from training.objective import attach_method
from training.run import run_training

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")


def said(make_config: MakeConfig, **settings: object) -> str:
    config = make_config(**settings)
    console = Console(file=io.StringIO(), width=200)
    dry_run(config, console)
    assert not config.output.exists()
    return console.file.getvalue()


@pytest.mark.parametrize("method", ["remix", "lora"])
def test_it_counts_what_a_run_has(make_config: MakeConfig, method: str) -> None:
    settings = {"method": method, "batch_size": 4, "gradient_accumulation": 2, "steps": 30}
    text = said(make_config, **settings)
    model = tiny_model("llama")
    base = model.num_parameters()
    layers = attach_method(model, make_config(method=method))
    parts = {
        name: sum(p.numel() for layer in layers.values() for p in which(layer) if p.requires_grad)
        for name, which in {
            "experts": lambda layer: (layer.a_nrD, layer.b_nOr),
            "routers": lambda layer: (layer.router_nD,),
        }.items()
    }
    trained = sum(parts.values())
    assert f"{parts['experts']:,} in experts, {parts['routers']:,} in routers" in text
    assert f"{trained / base:.2%} of the base's {base:,}" in text
    assert "30 steps of 8 rows, 20.00 epochs" in text
    copies = 4 if method == "remix" else 1
    assert f"the {copies} selections counted" in text
    assert "float32 on cpu" in text
    assert " GB in these two steps" in text


def test_rows_are_shown_as_they_will_be_learned(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = said(make_config)
    for row in ROWS[:3]:
        assert f"{row['prompt']}«{row['completion']}<|im_end|>»" in text
    assert ROWS[3]["prompt"] not in text
    long = [{"prompt": "x" * 500 + " end", "completion": "b"}]
    [example], _ = read_examples(
        write_rows(tmp_path / "long.jsonl", long), tokenizer, max_length=800
    )
    shown = learned(example, tokenizer).plain
    assert shown.startswith("… xxx")
    assert shown.endswith(" end«b<|im_end|>»")
    assert len(shown) < 430


def test_it_meets_the_errors_of_a_run(make_config: MakeConfig, tmp_path: Path) -> None:
    wrong = write_rows(tmp_path / "wrong.jsonl", [*ROWS, {"prompt": "a"}])
    with pytest.raises(DataError, match=r"wrong\.jsonl:13: completion: found nothing"):
        said(make_config, data=str(wrong))


def test_the_command_leaves_an_earlier_run_as_it_is(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config()
    run_training(config)
    before = {p: p.read_bytes() for p in config.output.rglob("*") if p.is_file()}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    app = typer.Typer()
    app.command()(train)
    result = CliRunner().invoke(app, [str(recipe), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "trained parameters" in result.output
    assert {p: p.read_bytes() for p in config.output.rglob("*") if p.is_file()} == before
    assert json.loads(before[config.output / "metrics.jsonl"].splitlines()[-1])["step"] == 6
