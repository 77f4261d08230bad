"""A base in parts over the processes of a run: the same bits, in a part of the memory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from remix_runtime.adapter.checkpoint import read_checkpoint, read_parity
from remix_runtime.adapter.checkpoint.parity_file import PARITY_FILE
from remix_runtime.adapter.layers import attach_checkpoint, base_shapes
from remix_runtime.adapter.parity import model_runner, replay_parity
from remix_runtime.errors import ConfigError
from tests.models import tiny_config, tiny_model, tiny_tokenizer
from tests.unit.training.conftest import ROWS, MakeConfig, write_rows
from tests.unit.training.ranks import end_of, train_with
from tests.unit.training.sharded import look, train_in_chunks
from training.base import load_base
from training.config import TrainConfig
from training.dry_run import dry_run
from training.log import read_metrics
from training.run import run_training
from training.sharding import shard

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

UPPER = ["layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]


def assert_same_ends(found: TrainConfig, expected: TrainConfig) -> None:
    """Bit for bit, in weights, moments, and losses on the way."""
    ends = end_of(found), end_of(expected)
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[1].items():
        assert torch.equal(ends[0][key], value), key
    losses = [
        [(row["loss"], row.get("held_out_loss")) for row in read_metrics(config.output)]
        for config in (found, expected)
    ]
    assert losses[0] == losses[1]


def uneven_rows(path: Path) -> str:
    """Held-out rows that make processes differ in all they may: the second has a batch less, and
    rows of other lengths, which the first has met in training."""
    others = [{"prompt": f"{i} ->", "completion": " x" * (1 + i % 5)} for i in range(16)]
    even = [ROWS[i % len(ROWS)] for i in range(17)]
    rows = [row for pair in zip(even, others, strict=False) for row in pair]
    return str(write_rows(path, [*rows, even[-1]]))


@pytest.fixture
def tied_base(tmp_path: Path) -> str:
    """A base whose head is its embedding, and whose blocks are of two kinds of attention."""
    config = tiny_config("gemma3")
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    folder = tmp_path / "tied"
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": True, "gradient_accumulation": 2},
        {"target_modules": UPPER, "base_dtype": "bfloat16", "method": "lora"},
        {"target_modules": UPPER, "cache_trunk": True, "gradient_checkpointing": True},
    ],
    ids=["remix", "recomputed", "lora in bfloat16", "kept trunk"],
)
def test_a_sharded_base_gives_the_same_bits(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    held_out = uneven_rows(tmp_path / "held_out.jsonl")
    settings = {"eval_data": held_out, "eval_every": 3, **settings}
    parts = make_config(output=str(tmp_path / "parts"), shard_base=True, **settings)
    whole = make_config(output=str(tmp_path / "whole"), **settings)
    train_with(2, parts)
    train_with(2, whole)
    assert_same_ends(parts, whole)
    for name in ("adapter_model.safetensors", PARITY_FILE):
        found, expected = (load_file(c.output / "adapter" / name) for c in (parts, whole))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    model, _ = load_base(parts.base)
    checkpoint = read_checkpoint(parts.output / "adapter", base=base_shapes(model))
    parity = read_parity(parts.output / "adapter")
    assert parity is not None
    layers = attach_checkpoint(model, checkpoint)
    assert replay_parity(parity, model_runner(model, layers)) == len(parity.prompts)


def test_with_a_head_in_chunks_and_tied_to_the_embedding(
    make_config: MakeConfig, tmp_path: Path, tied_base: str
) -> None:
    settings = {"base": tied_base, "target_modules": UPPER}
    parts = make_config(output=str(tmp_path / "parts"), shard_base=True, **settings)
    whole = make_config(output=str(tmp_path / "whole"), **settings)
    train_with(2, parts, target=train_in_chunks)
    train_with(2, whole, target=train_in_chunks)
    assert_same_ends(parts, whole)


def test_a_run_goes_on_with_and_without(make_config: MakeConfig, tmp_path: Path) -> None:
    settings = {"steps": 9, "checkpoint_every": 2}
    whole = make_config(output=str(tmp_path / "whole"), **settings)
    mixed = make_config(output=str(tmp_path / "mixed"), **settings)
    parts = mixed.model_copy(update={"shard_base": True})
    train_with(2, whole)
    train_with(2, parts, until=3)
    train_with(2, mixed, until=3, resume=True)
    train_with(2, parts, resume=True)
    assert_same_ends(mixed, whole)


def test_a_process_holds_a_part(make_config: MakeConfig) -> None:
    config = make_config(gradient_checkpointing=True)
    train_with(2, config, target=look)
    looks = [json.loads((config.output / f"{rank}.json").read_text()) for rank in range(2)]
    model = tiny_model("llama")
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.model.layers]
    for seen in looks:
        for when in ("before", "after"):
            assert seen[when] == [size // 2 for size in sizes]
        assert seen["most"] == sizes[0] + sizes[1] // 2  # one in whole


def test_one_process_is_refused_before_the_base_is_loaded(make_config: MakeConfig) -> None:
    config = make_config(shard_base=True, base="no/such/base")
    with pytest.raises(ConfigError, match="shard_base: found true in a run of one process"):
        run_training(config)


def test_a_dry_run_is_one_process_with_all_of_the_base(make_config: MakeConfig) -> None:
    console = Console(file=io.StringIO(), width=200)
    dry_run(make_config(shard_base=True), console)
    assert "a step on the longest rows" in console.file.getvalue()


def test_a_base_without_known_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.blocks.GradientCheckpointingLayer", type("Other", (), {}))
    with pytest.raises(ConfigError, match="shard_base: found true with a base of type llama"):
        shard(tiny_model("llama"), torch.device("cpu"))
