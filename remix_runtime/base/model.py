"""The one loader of bases: for serving, training and checks. It refuses what is not whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from remix_runtime.base.config import is_quantized, read_config, require_plain
from remix_runtime.base.folder import CONFIG, find_base, one_line, wrong
from remix_runtime.base.quiet import quiet
from remix_runtime.base.stored import load_stored
from remix_runtime.base.weights import require_clean, require_whole


def load_model(
    base: str,
    *,
    dtype: torch.dtype = torch.float32,
    stored: bool = False,
    attention: str | None = None,
    download: bool = False,
    quantizer: Any = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Loads a model in eval mode (no dropout), with all its tensors and no others: on the CPU, or
    on `device` and quantized on the way by `quantizer`, transformers' settings for that.

    `stored` leaves tensors of 16 bits in the type of their files and takes `dtype` for the rest.
    `base` and `download` are `find_base`'s; `attention` is the name of an implementation that
    transformers knows. Only safetensors files are read and no code of the model's author is run.
    Raises `ConfigError`, before weights are read where their headers already tell.
    """
    folder = find_base(base, download=download)
    config = read_config(folder)
    require_plain(folder, config)
    require_whole(folder, config)
    try:
        with quiet(bars=sys.stderr.isatty()):
            model: PreTrainedModel
            if stored:
                model, report = load_stored(folder, config, dtype=dtype, attention=attention)
            else:
                model, report = AutoModelForCausalLM.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype,
                    attn_implementation=attention,
                    quantization_config=quantizer,
                    device_map=device and {"": str(device)},
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    output_loading_info=True,
                )
    except Exception as error:  # which depends on the model's type and on what is wrong
        raise wrong(folder, f"cannot be loaded: {one_line(error)}") from None
    require_clean(folder, report)
    for field in ("vocab_size", "max_position_embeddings"):
        if not isinstance(getattr(model.config, field, None), int):
            raise wrong(folder / CONFIG, f"{field}: found none, expected a positive integer")
    return model.eval()


def check_base(base: str) -> Path:
    """For an engine that loads its model by itself: checks what needs no weights in memory.
    Returns the base's folder. Raises `ConfigError`."""
    folder = find_base(base)
    config = read_config(folder)
    if not is_quantized(config):  # whose tensors have names and shapes of their method
        require_whole(folder, config)
    return folder


def end_token_ids(model: PreTrainedModel, tokenizer_eos: int | None) -> frozenset[int]:
    """The tokens that end an answer: the model's and the tokenizer's."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    eos = eos if eos is not None else model.config.eos_token_id
    ids = eos if isinstance(eos, list) else [eos]
    return frozenset(i for i in [*ids, tokenizer_eos] if i is not None)
