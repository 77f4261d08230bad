"""A random model with a real tokenizer: fast, where what a model says does not matter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from remix_runtime.base.tokenizer import load_tokenizer


def write_small_model(base: Path, folder: Path, **shape: Any) -> PreTrainedModel:
    """Writes a Llama of this shape (fields of its configuration) with the base's tokenizer into
    `folder`, and returns it."""
    tokenizer = load_tokenizer(str(base))
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **shape)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    for file in base.glob("*token*"):
        shutil.copy(file, folder)
    return model
