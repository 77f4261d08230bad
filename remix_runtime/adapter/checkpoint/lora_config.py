"""`adapter_config.json` of a plain LoRA, as PEFT writes it.

Required are `r`, `lora_alpha` and `target_modules`; others have PEFT's defaults. What asks for
another computation than W x + scaling · B A x is refused by its name, and so is a field that we do
not know, unless it is null, false or empty. Fields of training alone may say what they like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TypeVar

from remix_runtime.adapter.checkpoint.fields import (
    CONFIG_FILE,
    Fields,
    integer,
    module_names,
    number,
    take_peft_fields,
    text,
    wrong,
)
from remix_runtime.adapter.checkpoint.name_pattern import name_pattern
from remix_runtime.adapter.checkpoint.strict_json import show
from remix_runtime.adapter.checkpoint.types import CheckpointLimits, LoraConfig
from remix_runtime.errors import CheckpointFormatError

PEFT_TYPE = "LORA"
ALL_LINEAR = "all-linear"

_FIELDS = (
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "init_lora_weights",
)
_OF_TRAINING = (
    "lora_dropout",
    "runtime_config",
    # Of initialisations, of which `init_lora_weights` says which was used.
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    # Of other fields, which are refused, or of modules, which take no adapter.
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
)
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules",
    "trainable_token_indices": "trained embeddings",
    "fan_in_fan_out": "transposed weights",
    "megatron_config": "Megatron's layers",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "an activated LoRA",
    "lora_bias": "a bias",
    "target_parameters": "a LoRA of parameters",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow's routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Those that leave the base as it is."""
_EXPECTED_INITIALISATION = (
    "true, false, gaussian, eva, orthogonal or mica: others change the base, unless "
    "save_pretrained converts the adapter (path_initial_model_for_weight_conversion)"
)

_BASE = "base_model_name_or_path"
_MAX_ALPHA = 1e6
_MAX_LAYERS = 1 << 12
_MAX_NAMES = 1 << 12
_MAX_KEYS = 1 << 10
"""Of a field that gives some modules numbers of their own: each is compared with each module."""
_MAX_PATTERNS = 64
"""Regular expressions of a field that are no mere names: each costs time with every module."""
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")

T = TypeVar("T")


def lora_config(found: Fields, limits: CheckpointLimits) -> LoraConfig:
    """The configuration in the JSON object of the file. Raises `CheckpointFormatError` that names
    the field, what was found and what was expected."""
    fields = {name: value for name, value in found.items() if value is not None}
    for name in ("r", "lora_alpha", "target_modules"):
        if name not in fields:
            raise wrong(found, name, "a value")
    others = {name: value for name, value in fields.items() if name not in _FIELDS}
    revision = take_peft_fields(others)
    _refuse(others)
    _require(fields, "task_type", ("CAUSAL_LM",), '"CAUSAL_LM"')
    _require(fields, "bias", ("none",), '"none": biases are not served')
    _require(fields, "init_lora_weights", _INITIALISATIONS, _EXPECTED_INITIALISATION)
    _require(fields, "use_rslora", (True, False), "true or false")
    targets = _modules(fields, "target_modules", 1, limits)
    if isinstance(targets, str):
        for name in ("layers_to_transform", "layers_pattern"):
            if name in fields:
                raise wrong(fields, name, "null beside target_modules that are text")
    layers_pattern = module_names(
        _many(fields, "layers_pattern"), "layers_pattern", 0, _MAX_PATTERNS
    )
    if layers_pattern and "layers_to_transform" not in fields:
        raise wrong(fields, "layers_pattern", "null without layers_to_transform")
    return LoraConfig(
        base_model_name_or_path=text({"base_model_name_or_path": "", **fields}, _BASE),
        r=integer(fields, "r", 1, limits.r),
        lora_alpha=number(fields, "lora_alpha", _MAX_ALPHA),
        use_rslora=bool(fields.get("use_rslora")),
        target_modules=targets,
        exclude_modules=_modules({"exclude_modules": [], **fields}, "exclude_modules", 0, limits),
        layers_to_transform=_layers(_many(fields, "layers_to_transform")),
        layers_pattern=layers_pattern,
        rank_pattern=_by_name(fields, "rank_pattern", lambda f, n: integer(f, n, 1, limits.r)),
        alpha_pattern=_by_name(fields, "alpha_pattern", lambda f, n: number(f, n, _MAX_ALPHA)),
        revision=revision,
    )


def canonical_lora_json(config: LoraConfig) -> bytes:
    """The one byte string that stands for `config` in the digest: what PEFT computes by, keys and
    lists whose order means nothing sorted, no spaces, ASCII."""
    names = (config.target_modules, config.exclude_modules)
    targets, excluded = (n if isinstance(n, str) else sorted(n) for n in names)
    fields = {
        "peft_type": PEFT_TYPE,
        "task_type": config.task_type,
        "base_model_name_or_path": config.base_model_name_or_path,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "use_rslora": config.use_rslora,
        "target_modules": targets,
        "exclude_modules": excluded,
        "layers_to_transform": sorted(config.layers_to_transform),
        "layers_pattern": config.layers_pattern,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def _refuse(others: Fields) -> None:
    for name, value in others.items():
        if name in _OF_TRAINING or value is False or value in ("", [], {}):
            continue
        if name in _REFUSED:
            raise wrong(others, name, f"null, false or nothing: {_REFUSED[name]} cannot be served")
        raise CheckpointFormatError(
            f"{CONFIG_FILE}: found field {show(name)} with {show(value)}, expected null, false or "
            "nothing in a field that we do not know"
        )


def _require(fields: Fields, name: str, values: tuple[object, ...], expected: str) -> None:
    # By type too, for 1 equals true.
    value = fields.get(name, values[0])
    if not any(type(value) is type(allowed) and value == allowed for allowed in values):
        raise wrong(fields, name, expected)


def _modules(
    fields: Fields, name: str, low: int, limits: CheckpointLimits
) -> tuple[str, ...] | str:
    value = fields[name]
    if not isinstance(value, str):
        return tuple(sorted(module_names(fields, name, low, limits.target_modules)))
    if not value:
        return module_names({name: []}, name, low, limits.target_modules)
    if name == "target_modules" and value.lower() == ALL_LINEAR:
        return ALL_LINEAR
    _check_pattern(name, value)
    return value


def _many(fields: Fields, name: str) -> Fields:
    """The field as a list; PEFT takes one value too."""
    value = fields.get(name, [])
    return {name: value if isinstance(value, list) else [value] if value != "" else []}


def _layers(fields: Fields) -> tuple[int, ...]:
    values = fields["layers_to_transform"]
    assert isinstance(values, list)
    if len(values) > _MAX_LAYERS:
        raise wrong(fields, "layers_to_transform", f"at most {_MAX_LAYERS} layers")
    named = {f"layers_to_transform: {index}": value for index, value in enumerate(values)}
    return tuple(sorted({integer(named, name, 0, _MAX_LAYERS - 1) for name in named}))


def _by_name(
    fields: Fields, name: str, read: Callable[[Fields, str], T]
) -> tuple[tuple[str, T], ...]:
    """The pairs of a field that maps regular expressions to numbers, in their order."""
    values = fields.get(name, {})
    if not isinstance(values, dict) or len(values) > _MAX_KEYS:
        raise wrong(fields, name, f"an object of at most {_MAX_KEYS} names")
    patterns = [key for key in values if not _PLAIN.fullmatch(key)]
    if len(patterns) > _MAX_PATTERNS:
        raise wrong(fields, name, f"at most {_MAX_PATTERNS} regular expressions that are no name")
    found = []
    for key, value in values.items():
        label = f"{name}: {show(key)}"
        if not _PLAIN.fullmatch(key):
            _check_pattern(label, key)
        found.append((key, read({label: value}, label)))
    return tuple(found)


def _check_pattern(name: str, pattern: str) -> None:
    try:
        name_pattern(pattern)
    except ValueError as error:
        raise CheckpointFormatError(f"{CONFIG_FILE}: {name}: {error}") from None
