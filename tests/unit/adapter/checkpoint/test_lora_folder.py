"""A plain LoRA's folder as PEFT writes it: read, described, and refused where it is not whole."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from remix_runtime.adapter.checkpoint import DEFAULT_LIMITS, describe, read_checkpoint
from remix_runtime.adapter.checkpoint.lora_config import canonical_lora_json
from remix_runtime.adapter.examination import examine
from remix_runtime.adapter.layers import attach_checkpoint, base_shapes
from remix_runtime.cli import build_app
from remix_runtime.errors import CheckpointError, CheckpointFormatError, CheckpointMismatchError
from tests.loras import LORAS, with_lora, write_lora
from tests.models import VOCAB_SIZE, save_tiny_base, tiny_model
from tests.unit.adapter.checkpoint.adapters import CONFIG_FILE, TENSOR_FILE, edit_config

BEGIN = "base_model.model.model.layers.0."
FIRST = f"{BEGIN}mlp.down_proj.lora_A.weight"


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings, dtype = LORAS["patterns"]
    return write_lora(tmp_path_factory.mktemp("lora"), "llama", settings, dtype)


@pytest.fixture
def lora(patterns: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(patterns, tmp_path / "lora"))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / TENSOR_FILE)
    change(tensors)
    save_file(tensors, folder / TENSOR_FILE, metadata={"format": "pt"})


def test_the_tensors_are_pefts_and_ranks_and_scalings_each_layers_own(lora: Path) -> None:
    checkpoint = read_checkpoint(lora, base=base_shapes(tiny_model("llama")))
    found = {
        name.removeprefix("model.layers."): (mixture.r, mixture.routing_weight)
        for name, mixture in checkpoint.mixtures.items()
    }
    assert found == {
        "0.mlp.down_proj": (3, 13.5 / 3),
        "0.mlp.gate_proj": (3, 31 / 3),
        "0.self_attn.o_proj": (7, 11 / 7),
        "1.mlp.down_proj": (2, 13.5 / 2),
        "1.mlp.gate_proj": (2, 11 / 2),
        "1.self_attn.o_proj": (7, 11 / 7),
    }
    tensors = load_file(lora / TENSOR_FILE)
    for name, layer in checkpoint.layers.items():
        prefix = f"base_model.model.{name}.lora"
        assert torch.equal(layer.a_nrD, tensors[f"{prefix}_A.weight"][None])
        assert torch.equal(layer.b_nOr, tensors[f"{prefix}_B.weight"][None])
        assert not layer.router_nD.any()
    assert checkpoint.num_bytes == sum(
        t.nbytes for w in checkpoint.layers.values() for t in (w.a_nrD, w.b_nOr, w.router_nD)
    )


def test_the_digest_is_of_the_configuration_and_the_bytes_of_the_tensors(lora: Path) -> None:
    checkpoint = read_checkpoint(lora)
    expected = hashlib.sha256(canonical_lora_json(checkpoint.config))  # type: ignore[arg-type]
    expected.update((lora / TENSOR_FILE).read_bytes())
    assert checkpoint.digest == expected.hexdigest()
    (lora / "README.md").write_text("another")
    edit_config(lora, {"lora_dropout": 0.25, "peft_version": "0.9.0", "inference_mode": False})
    assert read_checkpoint(lora).digest == checkpoint.digest
    (lora / "defaults.json").write_text('{"temperature": 0.5}')
    with_defaults = read_checkpoint(lora)
    assert with_defaults.digest != checkpoint.digest
    assert with_defaults.defaults.temperature == 0.5


@pytest.mark.parametrize("name", LORAS)
def test_the_readable_layer_computes_what_peft_does(name: str, tmp_path: Path) -> None:
    settings, dtype = LORAS[name]
    folder = write_lora(tmp_path, "qwen2", settings, dtype)
    model = tiny_model("qwen2")
    attach_checkpoint(model, read_checkpoint(folder, base=base_shapes(model)))
    ids = torch.randint(0, 256, (2, 9))
    with torch.no_grad():
        expected = with_lora("qwen2", folder)(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert (tiny_model("qwen2")(input_ids=ids).logits - expected).abs().max() > 0.1


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def put(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("base_model.model.lm_head.lora_A.weight", torch.ones(3, 64)), "lm_head"),
        (put(f"{BEGIN}mlp.up_proj.lora_A.weight", torch.ones(3, 64)), "up_proj.*down_proj"),
        (put("base_model.model.model.embed_tokens.weight", torch.ones(3, 4)), "embed_tokens"),
        (
            put("base_model.model.model.embed_tokens.lora_embedding_A", torch.ones(3, 4)),
            "lora_embedding_A",
        ),
        (put(f"{BEGIN}mlp.down_proj.lora_magnitude_vector", torch.ones(64)), "magnitude"),
        (put(f"{BEGIN}mlp.down_proj.lora_B.bias", torch.ones(64)), "lora_B.bias"),
        (rename(FIRST, FIRST.replace("lora_A", "lora_A.default")), "lora_A.default"),
        (rename(FIRST, FIRST.replace("base_model.model.", "", 1)), "model.layers.0"),
        (rename(FIRST, FIRST.replace("lora_A", "remix_A")), "remix_A"),
        (lambda tensors: tensors.pop(FIRST), "lora_A.weight is missing"),
        (put(FIRST, torch.ones(4, 96)), r"found shape \[4, 96\], expected \[r, D\] with r=3"),
        (put(FIRST, torch.ones(3, 96, 1, 1)), r"found shape \[3, 96, 1, 1\]"),
        (put(FIRST, torch.ones(3, 96, dtype=torch.float64)), "F64"),
        (put(FIRST, torch.full((3, 96), torch.nan)), "expected finite values"),
        (put(FIRST, torch.full((3, 96), 3e38)), "overflows"),
        (lambda t: t.update({n: torch.zeros_like(x) for n, x in t.items()}), "B·A = 0"),
    ],
)
def test_tensors_that_are_not_the_configurations_are_refused(
    lora: Path, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    edit_tensors(lora, change)
    with pytest.raises(CheckpointFormatError, match=words):
        read_checkpoint(lora)


def test_the_modules_must_be_those_of_the_base(lora: Path) -> None:
    shapes = base_shapes(tiny_model("llama"))
    gone = f"{BEGIN}self_attn.o_proj.lora_"
    edit_tensors(lora, lambda t: [t.pop(f"{gone}{part}.weight") for part in "AB"])
    with pytest.raises(CheckpointMismatchError, match=r"no tensors for .*0\.self_attn\.o_proj"):
        read_checkpoint(lora, base=shapes)
    edit_config(lora, {"exclude_modules": ["layers.0.self_attn.o_proj"]})
    read_checkpoint(lora, base=shapes)
    wide = {**shapes, "model.layers.0.mlp.down_proj": (64, 128)}
    with pytest.raises(CheckpointMismatchError, match=r"96, expected 64 and 128"):
        read_checkpoint(lora, base=wide)


def test_the_output_head_takes_no_lora(lora: Path) -> None:
    edit_config(lora, {"target_modules": ["down_proj", "gate_proj", "o_proj", "lm_head"]})
    for part, shape in (("A", (3, 64)), ("B", (VOCAB_SIZE, 3))):
        edit_tensors(lora, put(f"base_model.model.lm_head.lora_{part}.weight", torch.ones(shape)))
    read_checkpoint(lora)
    with pytest.raises(CheckpointMismatchError, match=r"lm_head.*output head left out"):
        read_checkpoint(lora, base=base_shapes(tiny_model("llama")))


def test_limits_are_held_before_memory_is_taken(lora: Path) -> None:
    needed = read_checkpoint(lora).num_bytes
    read_checkpoint(lora, limits=replace(DEFAULT_LIMITS, tensor_bytes=needed))
    with pytest.raises(CheckpointFormatError, match=f"{needed} bytes.*at most {needed - 1}"):
        read_checkpoint(lora, limits=replace(DEFAULT_LIMITS, tensor_bytes=needed - 1))
    with pytest.raises(CheckpointFormatError, match="r: found 3, expected an integer from 1 to 2"):
        read_checkpoint(lora, limits=replace(DEFAULT_LIMITS, r=2))


def test_pickles_are_not_read(lora: Path) -> None:
    torch.save(load_file(lora / TENSOR_FILE), lora / "adapter_model.bin")
    (lora / TENSOR_FILE).unlink()
    with pytest.raises(CheckpointError, match=TENSOR_FILE):
        read_checkpoint(lora)


def test_it_is_described_and_examined_as_what_it_is(lora: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(lora)
    found = describe(checkpoint)
    assert (found.kind, found.num_experts, found.top_k, found.r) == ("LoRA", 1, 1, 7)
    assert found.scaling == "lora"
    assert math.isclose(found.routing_weight, 31 / 3)
    numbers = sum(tensor.numel() for tensor in load_file(lora / TENSOR_FILE).values())
    assert found.num_parameters == found.num_active_parameters == numbers
    assert examine(lora) == found
    base = save_tiny_base(tmp_path / "base")
    run = CliRunner().invoke(build_app(), ["check", str(lora), "--base", str(base)])
    assert run.exit_code == 0, run.output
    assert "plain LoRA" in run.output
    assert "r = at most 7" in run.output
    facts = CliRunner().invoke(build_app(), ["check", str(lora), "--json"])
    assert json.loads(facts.output)["kind"] == "LoRA"


def test_an_expression_is_matched_against_the_names_of_the_file(tmp_path: Path) -> None:
    settings, dtype = LORAS["expression"]
    folder = write_lora(tmp_path, "llama", settings, dtype)
    assert describe(read_checkpoint(folder)).target_modules == (settings["target_modules"],)
    edit_config(folder, {"target_modules": r".*\.q_proj"})
    with pytest.raises(CheckpointFormatError, match=r"found tensor .*\.q_proj"):
        read_checkpoint(folder)
    edit_config(folder, {"target_modules": "all-linear", "exclude_modules": None})
    read_checkpoint(folder)
    with pytest.raises(CheckpointMismatchError, match="no tensors for"):
        read_checkpoint(folder, base=base_shapes(tiny_model("llama")))
    assert (folder / CONFIG_FILE).exists()
