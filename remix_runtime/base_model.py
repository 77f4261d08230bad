"""Loads the frozen base for training and `remix check`, and finds what serving must know of it."""

from __future__ import annotations

from logging import ERROR, getLogger
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from remix_runtime.errors import ConfigError


def load_model(base: str) -> PreTrainedModel:
    """Loads a float32 model on the CPU, in eval mode (no dropout).

    Only safetensors files are read and no code of the model's author is run. Raises `ConfigError`
    when `base` is neither a folder nor a known hub id.
    """
    logging.disable_progress_bar()
    getLogger("huggingface_hub").setLevel(ERROR)  # its retries; the last failure is raised
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise unusable(base, error) from None
    return model.eval()


def without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """Builds a model's modules without memory for their weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def unusable(base: str, error: Exception) -> ConfigError:
    """The error, in one line, for a base that cannot be loaded."""
    reason = str(error).strip().splitlines()[0]
    hint = "" if Path(base).is_dir() else " (there is no folder of that name; set the base)"
    return ConfigError(f"base: {base!r} cannot be loaded{hint}: {reason}")


def end_token_ids(model: PreTrainedModel, tokenizer_eos: int | None) -> frozenset[int]:
    """The tokens that end an answer: the model's and the tokenizer's."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    eos = eos if eos is not None else model.config.eos_token_id
    ids = eos if isinstance(eos, list) else [eos]
    return frozenset(i for i in [*ids, tokenizer_eos] if i is not None)
