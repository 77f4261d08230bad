"""The frozen base model and its tokenizer, as training uses them."""

from __future__ import annotations

from logging import ERROR, getLogger
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from remix_runtime.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises `ConfigError` where CUDA is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: found cuda without a CUDA device, expected cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def load_base(
    base: str, device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A float32 model in eval mode (no dropout) and its tokenizer.

    Only safetensors files are read and no code of the model's author is run. Raises
    `ConfigError` when `base` is neither a folder nor a known hub id.
    """
    logging.disable_progress_bar()
    getLogger("huggingface_hub").setLevel(ERROR)  # its retries; the last failure is raised
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        hint = "" if Path(base).is_dir() else " (there is no folder of that name; set the base)"
        raise ConfigError(f"base: {base!r} cannot be loaded{hint}: {reason}") from None
    return model.eval().to(device or torch.device("cpu")), tokenizer


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer when the model is served: the tokenizer's and the model's."""
    found = model.generation_config.eos_token_id if model.generation_config else None
    ids = found if isinstance(found, list) else [found]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
