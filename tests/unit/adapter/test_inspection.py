"""`remix check`: what an adapter is, whether it fits a base, whether its parity file replays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from remix_runtime.adapter.checkpoint import AdapterConfig, read_checkpoint, write_checkpoint
from remix_runtime.adapter.inspection import inspect_adapter
from remix_runtime.adapter.layers import attach
from remix_runtime.adapter.parity import record_parity
from remix_runtime.cli import build_app
from remix_runtime.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    ConfigError,
    ParityError,
)


def make_base(folder: Path, *, hidden: int = 32, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """An adapter with strong random effect on a tiny base, with two parity prompts."""
    model = make_base(base)
    config = AdapterConfig(
        base_model_name_or_path="tiny",
        num_experts=4,
        top_k=2,
        r=3,
        routing_weight=2 / 6**0.5,
        target_modules=("down_proj",),
    )
    layers = attach(model, config)
    with torch.no_grad():
        for layer in layers.values():
            layer.b_nOr.normal_(std=0.5)
            layer.router_nD.normal_()
    parity = record_parity(model, layers, [[1, 5, 9, 33], [7, 2, 64]])
    folder = tmp_path / "adapter"
    weights = {name: layer.weights() for name, layer in layers.items()}
    write_checkpoint(folder, config, weights, readme="# tiny", parity=parity)
    return folder


def test_facts_of_the_folder_alone(adapter: Path) -> None:
    facts = inspect_adapter(adapter)
    assert facts["digest"] == read_checkpoint(adapter).digest
    assert (facts["num_experts"], facts["top_k"], facts["r"]) == (4, 2, 3)
    assert (facts["num_layers"], facts["layers_by_target"]) == (2, {"down_proj": 2})
    assert facts["scaling"] == "rslora"
    # Per layer: 4 experts of 3·(48 + 32), a router of 4·48.
    assert facts["num_parameters"] == 2 * (4 * 3 * 80 + 4 * 48)
    assert facts["num_active_parameters"] == 2 * (2 * 3 * 80 + 4 * 48)
    assert facts["parity"] == "not replayed (give --base)"
    json.dumps(facts)


def test_parity_replays_on_the_base(adapter: Path, base: Path) -> None:
    facts = inspect_adapter(adapter, str(base))
    assert facts["base"] == f"fits {base}"
    assert facts["parity"] == "2 prompts replayed, 2 without a near-tie"


def test_another_base_of_the_same_shape_fails_the_replay(adapter: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "other", seed=1)
    with pytest.raises(ParityError):
        inspect_adapter(adapter, str(tmp_path / "other"))


def test_a_changed_tensor_fails_the_replay(adapter: Path, base: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(name for name in sorted(tensors) if name.endswith("remix_B.weight"))
    tensors[key] = tensors[key] * 1.1
    save_file(tensors, file)
    with pytest.raises(ParityError):
        inspect_adapter(adapter, str(base))


def test_a_base_of_other_widths_is_a_mismatch(adapter: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "wide", hidden=64)
    with pytest.raises(CheckpointMismatchError):
        inspect_adapter(adapter, str(tmp_path / "wide"))


def test_a_missing_base_is_named(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base: there is no folder"):
        inspect_adapter(adapter, str(tmp_path / "nowhere"))


def test_command_prints_table_or_json(adapter: Path) -> None:
    table = CliRunner(env={"COLUMNS": "200"}).invoke(build_app(), ["check", str(adapter)])
    assert table.exit_code == 0, table.output
    for shown in (read_checkpoint(adapter).digest, "n = 4, k = 2, r = 3", "2 (2 down_proj)"):
        assert shown in table.stdout
    as_json = CliRunner().invoke(build_app(), ["check", str(adapter), "--json"])
    assert json.loads(as_json.stdout) == inspect_adapter(adapter)


def test_command_on_a_bad_folder_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(build_app(), ["check", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_strangers_text_is_shown_as_it_is(adapter: Path) -> None:
    config = adapter / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "base_model_name_or_path": "x[/b][red]y"}))
    result = CliRunner(env={"COLUMNS": "200"}).invoke(build_app(), ["check", str(adapter)])
    assert result.exit_code == 0, result.output
    assert "x[/b][red]y" in result.stdout


def test_a_parity_prompt_over_the_context_is_refused(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    model = make_base(base)
    config = read_checkpoint(adapter).config
    layers = attach(model, config)
    with torch.no_grad():
        for layer in layers.values():
            layer.b_nOr.normal_(std=0.5)
    parity = record_parity(model, layers, [[1] * 65])
    weights = {name: layer.weights() for name, layer in layers.items()}
    write_checkpoint(tmp_path / "long", config, weights, readme="long", parity=parity)
    with pytest.raises(CheckpointFormatError, match="found 65 tokens, expected at most 64"):
        inspect_adapter(tmp_path / "long", str(base))


def test_a_truncated_base_is_a_config_error(base: Path, adapter: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read"):
        inspect_adapter(adapter, str(base))
