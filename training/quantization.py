"""A frozen base in 8 or 4 bits: its linears are quantized by another library as they are loaded.

The adapter and its gradients stay in float32; what flows through a base's linear is in the base's
type, which the libraries make its weights into again for each product.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from remix_runtime.base.config import is_quantized as says_quantized
from remix_runtime.base.model import load_model
from remix_runtime.errors import ConfigError
from remix_runtime.extras import require_extra
from training.config import Quantization

_PACKAGES = {"bnb-4bit": "bitsandbytes", "bnb-8bit": "bitsandbytes", "torchao-8bit": "torchao"}


def require_library(setting: Quantization) -> None:
    """Raises `ConfigError` where the library of a setting is missing."""
    if setting != "none":
        packages = (_PACKAGES[setting], "accelerate")
        require_extra(f"base_quantization: {setting}", "quantize", *packages)


def load_quantized(
    folder: Path, setting: Quantization, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A base on a device, which computes in `dtype`. Raises `ConfigError`."""
    try:
        settings = _settings(setting, dtype)
    except (ImportError, ValueError) as error:  # the library is of another version
        raise ConfigError(f"base_quantization: {setting}: {error}") from None
    model = load_model(str(folder), dtype=dtype, quantizer=settings, device=device)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            # In eval mode those of bitsandbytes may pack their weights for kernels that have no
            # gradient, and lose it without a word.
            module.train()
    return model


def is_quantized(model: PreTrainedModel) -> bool:
    return says_quantized(model.config)


def _settings(setting: Quantization, dtype: torch.dtype) -> QuantizationConfigMixin:
    """transformers' own."""
    if setting == "torchao-8bit":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if setting == "bnb-8bit":
        # It says so once for each product: that inputs are rounded is what it is asked for.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
