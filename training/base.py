"""The frozen base model and its tokenizer, as training uses them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from remix_runtime.base.config import read_config
from remix_runtime.base.folder import find_base, wrong
from remix_runtime.base.model import load_model
from remix_runtime.base.tokenizer import load_tokenizer
from remix_runtime.errors import ConfigError
from training.config import BaseType, Quantization
from training.quantization import load_quantized
from training.sharding import shard


def pick_device(name: str) -> torch.device:
    """The device of a setting; `auto` is CUDA where there is one. Raises `ConfigError` for CUDA
    where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: found cuda without a CUDA device, expected cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_type(setting: BaseType, stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The type that a base is trained in, by the setting `base_dtype` and the type of its file. By
    itself float32 on the CPU, where other types are slow, and on CUDA bfloat16 for what is stored
    in 16 bits: its numbers are those of the file, or near them for float16."""
    if setting != "auto":
        return torch.bfloat16 if setting == "bfloat16" else torch.float32
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if has_bfloat16 and stored in (torch.bfloat16, torch.float16):
        return torch.bfloat16
    return torch.float32


def load_base(
    base: str,
    device: torch.device | None = None,
    *,
    chat_template: str | None = None,
    dtype: BaseType = "float32",
    quantization: Quantization = "none",
    sharded: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the base model on `device`, and its tokenizer, with an adapter's own chat template if
    there is one. `sharded` leaves it this process's part of the base. Raises `ConfigError`."""
    device = device or torch.device("cpu")
    folder = find_base(base, download=True)
    tokenizer = load_tokenizer_of(folder, chat_template=chat_template)
    stored = getattr(read_config(folder).get_text_config(), "dtype", None)
    picked = pick_type(dtype, stored, device)
    if quantization != "none":
        return load_quantized(folder, quantization, picked, device), tokenizer
    model = load_model(str(folder), dtype=picked)
    return shard(model, device) if sharded else model.to(device), tokenizer


def load_tokenizer_of(folder: Path, *, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a base's folder, with an adapter's own chat template if there is one. Raises
    `ConfigError`."""
    tokenizer = load_tokenizer(str(folder))
    if tokenizer.eos_token_id is None:
        raise wrong(folder, "eos_token: the tokenizer has none, expected one to end an answer with")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def row_limit(config: PretrainedConfig, wanted: int | None, *, default: int) -> int:
    """The most tokens of a row: what is wanted, and by default no more than the model's context.
    Raises `ConfigError` for more than the context."""
    context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return wanted or default
    if wanted is not None and wanted > context:
        raise ConfigError(
            f"max_length: found {wanted}, expected at most {context}, the context of the base "
            "(max_position_embeddings)"
        )
    return wanted or min(default, context)
