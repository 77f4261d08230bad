"""`adapter_config.json` of a plain LoRA: every field of PEFT's is read, left aside or refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftLoraConfig

from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.checkpoint.layouts import LoraLayout
from remix_runtime.adapter.checkpoint.lora_config import (
    _FIELDS,
    _OF_TRAINING,
    _REFUSED,
    canonical_lora_json,
    lora_config,
)
from remix_runtime.adapter.checkpoint.types import DEFAULT_LIMITS, LoraConfig
from remix_runtime.errors import CheckpointFormatError
from tests.loras import write_lora
from tests.unit.adapter.checkpoint.adapters import edit_config

PEFT = {"peft_type", "auto_mapping", "revision", "inference_mode", "peft_version"}
MINIMAL: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["up_proj"],
}


def parse(**fields: Any) -> LoraConfig:
    return lora_config({**MINIMAL, **fields}, DEFAULT_LIMITS)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    return write_lora(folder, "llama", {"r": 4, "target_modules": ["up_proj"]})


def test_every_field_of_the_installed_peft_is_decided() -> None:
    decided = PEFT | {*_FIELDS, *_OF_TRAINING, *_REFUSED}
    assert {field.name for field in dataclasses.fields(PeftLoraConfig)} <= decided


def test_the_defaults_are_pefts() -> None:
    """What PEFT writes means what it means where PEFT leaves it out."""
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["up_proj"], "task_type": "CAUSAL_LM"}
    written = PeftLoraConfig(**fields).to_dict()
    written |= {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["up_proj"]}
    assert lora_config(written, DEFAULT_LIMITS) == parse()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1, 2]),
        ("trainable_token_indices", {"embed_tokens": [1]}),
        ("fan_in_fan_out", True),
        ("megatron_config", {"hidden_size": 64}),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [5]),
        ("lora_bias", True),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1e-4}),
        ("monteclora_config", {"num_samples": 8}),
        ("velora_config", {"num_groups": 64}),
        ("auto_mapping", {"base_model_class": "X", "parent_library": "os"}),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("task_type", "SEQ_CLS"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", 1),
        ("use_rslora", "yes"),
        ("use_rslora", 1),
        ("from_the_future", True),
        ("from_the_future", 0),
        ("r", None),
        ("r", 0),
        ("r", 1025),
        ("r", 4.0),
        ("r", True),
        ("lora_alpha", None),
        ("lora_alpha", 0),
        ("lora_alpha", -8),
        ("lora_alpha", "8"),
        ("lora_alpha", 1e300),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", [".*"]),
        ("target_modules", {"up_proj": 1}),
        ("target_modules", ""),
        ("target_modules", "(?=model).*"),
        ("target_modules", "(up_proj"),
        ("target_modules", "up_proj)|(down_proj"),
        ("target_modules", r"(model)\1"),
        ("target_modules", "((.{9}){9}){9}"),
        ("target_modules", "." * 1025),
        ("exclude_modules", "[z-a]"),
        ("exclude_modules", 7),
        ("rank_pattern", ["up_proj"]),
        ("rank_pattern", {"up_proj": 0}),
        ("rank_pattern", {"up_proj": "4"}),
        ("rank_pattern", {"up_proj": 1025}),
        ("rank_pattern", {"(up_proj": 4}),
        ("rank_pattern", {f"up_proj|x{i}": 4 for i in range(65)}),
        ("rank_pattern", {f"up_proj{i}": 4 for i in range(4097)}),
        ("alpha_pattern", {"up_proj": 0}),
        ("alpha_pattern", {"up_proj": True}),
        ("layers_to_transform", "1"),
        ("layers_to_transform", [1, -1]),
        ("layers_to_transform", [1.0]),
        ("layers_pattern", "layers"),
        ("inference_mode", "yes"),
        ("peft_version", 21),
        ("revision", 7),
        ("base_model_name_or_path", "a\nb"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    lora: Path, tmp_path: Path, name: str, value: Any
) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    for path in lora.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    read_checkpoint(folder)
    edit_config(folder, {name: value})
    with pytest.raises(CheckpointFormatError, match=rf"adapter_config\.json: .*{name}.*expected"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["layers_to_transform", "layers_pattern"])
def test_layers_beside_an_expression_are_refused_as_in_peft(name: str) -> None:
    with pytest.raises(CheckpointFormatError, match=rf"{name}: .*expected null"):
        parse(target_modules=r".*\.up_proj", **{name: [1]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, empty) for name in (*_REFUSED, "unknown") for empty in (None, False, "", [], {})),
        ("lora_dropout", 0.5),
        ("inference_mode", False),
        ("peft_version", "0.9.0"),
        ("megatron_core", "megatron.core"),
        ("qalora_group_size", 32),
        ("loftq_config", {"loftq_bits": 4}),
        ("eva_config", {"rho": 2.0}),
        ("corda_config", {"verbose": True}),
        ("ensure_weight_tying", True),
        *(("init_lora_weights", how) for how in (True, False, "gaussian", "eva", "orthogonal")),
        ("bias", "none"),
        ("task_type", None),
        ("rank_pattern", {}),
        ("rank_pattern", None),
        ("layers_to_transform", []),
        ("exclude_modules", []),
    ],
)
def test_what_changes_nothing_is_no_part_of_the_identity(name: str, value: Any) -> None:
    assert canonical_lora_json(parse(**{name: value})) == canonical_lora_json(parse())


def test_every_field_that_counts_is_part_of_the_identity() -> None:
    changes: dict[str, Any] = {
        "base_model_name_or_path": "other",
        "r": 5,
        "lora_alpha": 8.5,
        "use_rslora": True,
        "target_modules": ["down_proj"],
        "exclude_modules": ["down_proj"],
        "layers_to_transform": [1],
        "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {"up_proj": 2},
    }
    forms = {canonical_lora_json(parse(**{name: value})) for name, value in changes.items()}
    # Of two expressions that fit a module the first counts.
    for patterns in ({"up_proj": 2, ".*_proj": 3}, {".*_proj": 3, "up_proj": 2}):
        forms.add(canonical_lora_json(parse(rank_pattern=patterns)))
    forms.add(canonical_lora_json(parse(target_modules="down_proj")))
    forms.add(canonical_lora_json(parse(layers_to_transform=[1], layers_pattern="h")))
    assert len(forms | {canonical_lora_json(parse())}) == len(changes) + 5
    assert set(json.loads(canonical_lora_json(parse()))) == (
        {field.name for field in dataclasses.fields(LoraConfig)} - {"revision"} | {"peft_type"}
    )
    assert canonical_lora_json(replace(parse(), revision="x")) == canonical_lora_json(parse())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"target_modules": ["a", "b"]}, {"target_modules": ["b", "a"]}),
        ({"target_modules": "All-Linear"}, {"target_modules": "all-linear"}),
        ({"layers_to_transform": 1}, {"layers_to_transform": [1]}),
        (
            {"layers_to_transform": [0], "layers_pattern": "layers"},
            {"layers_to_transform": [0, 0], "layers_pattern": ["layers"]},
        ),
        ({"lora_alpha": 16}, {"lora_alpha": 16.0}),
        ({"exclude_modules": ""}, {"exclude_modules": None}),
    ],
)
def test_two_spellings_of_one_configuration_are_one(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert canonical_lora_json(parse(**one)) == canonical_lora_json(parse(**other))


JSON = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
        st.sampled_from([1, 4, 0.5, "none", "up_proj", ".*", "all-linear", "layers", "10" * 400]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=500)
@given(st.dictionaries(st.sampled_from([*_FIELDS, *_REFUSED, *sorted(PEFT), "other"]), JSON))
def test_any_json_is_a_configuration_or_refused(fields: dict[str, Any]) -> None:
    try:
        config = lora_config({**MINIMAL, **fields}, DEFAULT_LIMITS)
    except CheckpointFormatError:
        return
    layout = LoraLayout(config)
    assert layout.canonical == canonical_lora_json(config)
    for module in ("model.layers.1.mlp.up_proj", "up_proj", ""):
        layout.names(module)
        assert layout.mixture(module).routing_weight > 0
