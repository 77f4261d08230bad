"""Loads a base with its 16-bit tensors in the type of their files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from remix_runtime.base.folder import GENERATION
from remix_runtime.base.weights import tensor_files, without_weights

_KEPT = (torch.bfloat16, torch.float16)


class _Part:
    """A tensor of a file, for transformers' loader: read when it is moved to its place."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getitem__(self, index: object) -> _Part:
        return self

    def to(self, *, device: str, dtype: torch.dtype) -> Tensor:
        tensor: Tensor = self._part[...]
        return tensor.to(device, tensor.dtype if tensor.dtype in _KEPT else dtype)


def load_stored(
    folder: Path, config: PretrainedConfig, *, dtype: torch.dtype, attention: str | None
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model on the CPU, and transformers' report of loading it. Parameters of 16 bits are as
    stored, everything else, and what the model computes of its configuration, is of type `dtype`.
    """
    with ExitStack() as files:
        parts: dict[str, _Part] = {}
        for file in tensor_files(folder):
            tensors = files.enter_context(safe_open(file, framework="pt"))
            parts |= {name: _Part(tensors.get_slice(name)) for name in tensors.keys()}  # noqa: SIM118
        # The class itself: transformers' automatic one copies what it is given.
        model, report = type(without_weights(config)).from_pretrained(
            None,
            config=config,
            state_dict=parts,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    if (folder / GENERATION).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, report
