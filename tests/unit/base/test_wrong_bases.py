"""A base that is not whole, or not itself: refused by name, in one line, wherever it is loaded."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.base.model import check_base, load_model
from remix_runtime.base.tokenizer import load_tokenizer
from remix_runtime.cli import run
from remix_runtime.errors import ConfigError
from tests.models import random_checkpoint, tiny_model
from tests.wrong_bases import WRONG_MODELS, WRONG_TOKENIZERS, Damage, fields, without

HEADLESS = WRONG_MODELS["missing head"]


@pytest.mark.parametrize(("damage", "names"), WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_a_wrong_model(
    base: Path, damage: Damage, names: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(base)
    with pytest.raises(ConfigError) as refused:
        load_model(str(base))
    message = str(refused.value)
    assert message.startswith("base: ")
    assert "\n" not in message
    assert re.search(names, message)
    assert capfd.readouterr() == ("", ""), "the error is all that is said"


@pytest.mark.parametrize("name", [n for n in WRONG_MODELS if "quantized by" not in n])
def test_an_engine_that_loads_by_itself_says_the_same(base: Path, name: str) -> None:
    damage, _ = WRONG_MODELS[name]
    damage(base)
    with pytest.raises(ConfigError) as loaded:
        load_model(str(base))
    with pytest.raises(ConfigError) as checked:
        check_base(str(base))
    assert str(checked.value) == str(loaded.value)


@pytest.mark.parametrize(("damage", "names"), WRONG_TOKENIZERS.values(), ids=WRONG_TOKENIZERS)
def test_a_wrong_tokenizer(
    base: Path, damage: Damage, names: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(base)
    with pytest.raises(ConfigError) as refused:
        load_tokenizer(str(base))
    message = str(refused.value)
    assert message.startswith("base: ")
    assert "\n" not in message
    assert re.search(names, message)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/nope", "there is no folder '/nope', expected a model's"),
        ("nope", "there is no folder 'nope', and no model of that id in the local cache"),
        ("some/where", "there is no folder 'some/where', and no model of that id"),
        ("some/where/else", "no folder 'some/where/else'"),
        ("", "no folder ''"),
        ("a\0b", "no folder"),
        ("x" * 5000, "no folder"),
    ],
)
def test_no_folder(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        load_model(name)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 11_000


def test_a_file_is_no_folder(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"found the file .*, expected a folder"):
        load_model(str(base / "config.json"))


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, list[str]]:
    """The commands that load the base in `tmp_path / "base"`."""
    base, adapter, rows = str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "rows.jsonl"
    checkpoint = random_checkpoint(tiny_model("llama"))
    write_checkpoint(adapter, checkpoint.config, checkpoint.layers, readme="x")
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"base": base, "data": str(rows), "output": "run", "steps": 1}))
    return {
        "check": ["check", str(adapter), "--base", base],
        "eval": ["eval", str(adapter), str(rows), "--base", base],
        "train": ["train", str(recipe)],
        "serve": ["serve", "--base", base, "--port", "0"],
        "bench": ["bench", "--base", base, "--out", str(tmp_path / "out"), "--peers", ""],
    }


@pytest.mark.parametrize("command", ["check", "eval", "train", "serve", "bench"])
@pytest.mark.parametrize("fault", ["missing head", "a LoRA beside", "an adapter", "no layers"])
def test_a_command_ends_with_one_line(
    base: Path,
    commands: dict[str, list[str]],
    command: str,
    fault: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # `serve` sets the level of the rooms' loggers for the process.
    for room in ("server", "remix_runtime"):
        monkeypatch.setattr(logging.getLogger(room), "level", logging.NOTSET)
    damage, names = WRONG_MODELS[fault]
    damage(base)
    assert run(commands[command]) == 1
    out, err = capfd.readouterr()
    assert all(line.endswith(" …") for line in out.splitlines())  # what `train` begins
    assert re.fullmatch(rf"error: base: .*{names}.*\n", err)


def test_training_needs_an_end_token(base: Path) -> None:
    from training.base import load_base

    without("tokenizer_config.json", "eos_token")(base)
    load_tokenizer(str(base))
    with pytest.raises(ConfigError, match="eos_token: the tokenizer has none"):
        load_base(str(base))


def test_nothing_of_a_base_leads_to_another(base: Path, tmp_path: Path) -> None:
    """An adapter's folder, whose configuration names a good base, is no way to that base."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)})
    )
    for load in (load_model, check_base, load_tokenizer):
        with pytest.raises(ConfigError, match="found an adapter, expected a model; its base is"):
            load(str(folder))


def test_a_generation_config_without_an_end_is_fine(base: Path) -> None:
    fields("generation_config.json", eos_token_id=None)(base)
    load_model(str(base))
