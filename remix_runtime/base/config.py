"""Reads the configuration of a base, and what it says of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
)

from remix_runtime.base.folder import CONFIG, GENERATION, one_line, read_json, wrong
from remix_runtime.base.quiet import quiet

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    *("n_embd", "n_layer", "n_head", "n_positions"),
)
_MOST_LAYERS = 1000
"""More are a mistake, and would be built one by one before a tensor is missed."""

_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a causal language model. Raises `ConfigError`, which names the field.

    No code of the model's author is run: where the folder has some, transformers' own is used if
    it has any for this type of model.
    """
    file = folder / CONFIG
    found = read_json(file)
    _check_type(file, found)
    for scope in (found, found.get("text_config")):
        if isinstance(scope, dict):
            _check_sizes(file, scope)
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # which depends on the model's type and on what is wrong
        raise wrong(file, one_line(error)) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        kind = "an encoder-decoder" if config.is_encoder_decoder else "another kind of model"
        raise wrong(
            file, f"model_type: {config.model_type!r} is {kind}, expected a causal language model"
        )
    _check_tokens(folder, config, vocab_size(folder, config))
    return config


def vocab_size(folder: Path, config: PretrainedConfig) -> int:
    """The rows of the embedding. Raises `ConfigError` where there is no such number."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(size, int):
        raise wrong(folder / CONFIG, f"vocab_size: found {size!r}, expected a positive integer")
    return size


def is_quantized(config: PretrainedConfig) -> bool:
    return getattr(config, "quantization_config", None) is not None


def require_plain(folder: Path, config: PretrainedConfig) -> None:
    """Raises `ConfigError` for quantized weights, with or without the library that reads them."""
    if not is_quantized(config):
        return
    found = config.quantization_config
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    raise wrong(
        folder / CONFIG,
        f"quantization_config: found {method or found!r}, expected weights that are not quantized",
    )


def _check_type(file: Path, found: Mapping[str, Any]) -> None:
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        needs = " (its author's code, which auto_map names, is never run)"
        raise wrong(
            file,
            f"model_type: found {kind!r}, expected one that transformers "
            f"{transformers.__version__} knows{needs if 'auto_map' in found else ''}",
        )
    names = found.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise wrong(file, f"architectures: found {names!r}, expected a list of names")
    if names and not any(name.endswith(_GENERATIVE) for name in names):
        raise wrong(
            file, f"architectures: found {', '.join(names)}, expected a causal language model"
        )
    quantization = found.get("quantization_config")
    if not isinstance(quantization, dict | None):
        raise wrong(file, f"quantization_config: found {quantization!r}, expected an object")
    if found.get("transformers_weights") is not None:
        raise wrong(
            file,
            f"transformers_weights: found {found['transformers_weights']!r}, expected none: "
            "weights are in model.safetensors or its shards",
        )


def _check_sizes(file: Path, scope: Mapping[str, Any]) -> None:
    for field in _SIZES:
        value = scope.get(field)
        if isinstance(value, (bool, float, str, int)) and not (type(value) is int and value > 0):
            raise wrong(file, f"{field}: found {value!r}, expected a positive integer")
        if field in ("num_hidden_layers", "n_layer") and (value or 0) > _MOST_LAYERS:
            raise wrong(file, f"{field}: found {value}, expected at most {_MOST_LAYERS}")


def _check_tokens(folder: Path, config: PretrainedConfig, size: int) -> None:
    """Raises `ConfigError` for special tokens that the embedding has no row for."""
    _check_ids(folder / CONFIG, config.get_text_config().to_dict(), size)
    file = folder / GENERATION
    if file.exists():
        _check_ids(file, read_json(file), size)


def _check_ids(file: Path, fields: Mapping[str, Any], size: int) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = fields.get(name)
        lowest = 0 if name == "eos_token_id" else -1  # older models have a padding of −1
        for number in value if isinstance(value, list) else [value]:
            if number is None:
                continue
            if type(number) is not int or not lowest <= number < size:
                raise wrong(
                    file, f"{name}: found {number!r}, expected a token id below vocab_size ({size})"
                )
