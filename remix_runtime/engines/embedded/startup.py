"""From settings to a running engine core: load the model, put our modules in, size the memory."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from remix_runtime.adapter.layers import base_shapes
from remix_runtime.adapter.parity import PARITY_SLACK
from remix_runtime.base.fingerprint import fingerprint
from remix_runtime.base.folder import find_base
from remix_runtime.base.model import end_token_ids, load_model
from remix_runtime.contracts import ModelInfo
from remix_runtime.engines.embedded.bank import AdapterBank
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.core import EngineCore
from remix_runtime.engines.embedded.fused import fuse
from remix_runtime.engines.embedded.modules import ATTENTION_NAME, install, paged_attention
from remix_runtime.engines.embedded.runner import ModelRunner
from remix_runtime.engines.embedded.small_ops import install_small_ops
from remix_runtime.engines.tokenizer import ModelTokenizer
from remix_runtime.errors import ConfigError
from remix_runtime.kernels import keeps_stored
from remix_runtime.kernels.attention import PAGE_TOKENS, PagedKV, page_bytes

log = logging.getLogger(__name__)

AttentionInterface.register(ATTENTION_NAME, paged_attention)

_ATTENTION_FIELDS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_ATTENTION_TYPES = {"full_attention", "sliding_attention"}
_ROPE_TYPES_THAT_DEPEND_ON_THE_BATCH = {"dynamic", "longrope"}


def build_core(config: EmbeddedConfig) -> EngineCore:
    """Raises `ConfigError` for a model that cannot be served or a budget that holds nothing."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    dtype = _dtype(config.dtype, device)
    tokenizer = ModelTokenizer(config.model)
    stored = _stored(config, device, dtype)
    network = load_model(config.model, dtype=dtype, stored=stored, attention=ATTENTION_NAME)
    network.requires_grad_(False)
    check_supported(network)
    shapes = base_shapes(network)
    network.to(device)
    int8 = config.weights == "int8"
    tables = install(network, num_slots=config.adapter_slots, dtype=dtype, int8=int8)
    if stored:
        network.float()  # what is left: norms, biases, and what no kernel of ours reads
    if device.type == "cpu":
        _take_from_file(network)
    kv, num_pages = _kv(network, config.kv_cache_bytes, dtype, device)
    native = fuse(network, kv)
    install_small_ops(network)
    runner = ModelRunner(
        network,
        native,
        model=_model_info(config, network, tokenizer, num_pages * PAGE_TOKENS),
        tokenizer=tokenizer,
        kv=kv,
        num_pages=num_pages,
        base_shapes=shapes,
        device=device,
        parity_slack=PARITY_SLACK[torch.int8 if int8 else dtype],
    )
    bank = AdapterBank(
        tables,
        num_slots=config.adapter_slots,
        device=device,
        device_bytes=config.adapter_bytes,
        host_bytes=config.host_adapter_bytes,
    )
    return EngineCore(config, runner, bank)


def _take_from_file(network: nn.Module) -> None:
    """Copies parameters that are views of the base's file, which may change under a server."""
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()


def check_supported(network: PreTrainedModel) -> None:
    """Refuses what this engine would compute wrongly: it knows causal, sliding-window and
    soft-capped attention only. Raises `ConfigError`."""
    config, name = network.config, type(network).__name__
    if not getattr(network, "_supports_attention_backend", False) or config.is_encoder_decoder:
        raise ConfigError(f"model: {name} does not take transformers' attention interface")
    for field in _ATTENTION_FIELDS:
        if not hasattr(config, field):
            raise ConfigError(f"model: {name} has no {field}: its attention is not supported")
    other = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_TYPES
    if other:
        raise ConfigError(f"model: {name} has {', '.join(sorted(other))} layers, not supported")
    if any(hasattr(module, "sinks") for module in network.modules()):
        raise ConfigError(f"model: {name} uses attention sinks, not supported")
    for rope in _rope_types(config):
        if rope in _ROPE_TYPES_THAT_DEPEND_ON_THE_BATCH:
            raise ConfigError(f"model: rope type {rope!r} changes with the batch, not supported")


def _rope_types(config: PretrainedConfig) -> set[str]:
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    scopes = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return {scope["rope_type"] for scope in scopes if "rope_type" in scope}


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: found cuda, but PyTorch sees no CUDA device; use cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _stored(config: EmbeddedConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the base's weights keep the type of their files. Raises `ConfigError`."""
    kind = str(dtype).removeprefix("torch.")
    if config.weights == "float32" and dtype != torch.float32:
        raise ConfigError(f"weights: found float32, expected stored for dtype {kind}")
    widens = keeps_stored(device, dtype)
    if config.weights == "int8" and not widens:
        if device.type != "cpu" or dtype != torch.float32:
            needs = f"the CPU and dtype float32; found {device.type} and {kind}"
        else:
            needs = "the native CPU kernels, and these need a C compiler such as gcc"
        raise ConfigError(f"weights: int8 needs {needs}")
    return widens and config.weights != "float32"


def kv_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """Layers, key-value heads of one, and the width of a head."""
    heads = config.num_key_value_heads or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


def _kv(
    network: nn.Module, budget: int, dtype: torch.dtype, device: torch.device
) -> tuple[PagedKV, int]:
    """The KV memory and its number of pages: as many as the budget holds."""
    config = network.config
    assert isinstance(config, PretrainedConfig)
    layers, heads, width = kv_shape(config)
    one_page = page_bytes([heads] * layers, [width] * layers, dtype)
    num_pages = budget // one_page
    if num_pages < 1:
        raise ConfigError(f"kv_cache_bytes: found {budget}, one page takes {one_page}")
    return PagedKV(layers, num_pages, heads, width, dtype, device), num_pages


def _model_info(
    config: EmbeddedConfig, network: PreTrainedModel, tokenizer: ModelTokenizer, kv_tokens: int
) -> ModelInfo:
    limit: int = network.config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len: found {config.max_model_len}, the model was made for {limit}"
        )
    if config.max_model_len is not None and config.max_model_len > kv_tokens:
        raise ConfigError(
            f"max_model_len: found {config.max_model_len}, kv_cache_bytes "
            f"({config.kv_cache_bytes}) holds {kv_tokens} tokens"
        )
    if limit > kv_tokens:
        log.warning(
            "max_model_len is %d, what kv_cache_bytes holds; the model was made for %d tokens",
            kv_tokens,
            limit,
        )
        limit = kv_tokens
    # "." and "..", too, have a name; a link keeps its own.
    folder = os.path.abspath(config.model) if Path(config.model).is_dir() else config.model
    return ModelInfo(
        name=config.served_model_name or Path(folder).name,
        max_model_len=config.max_model_len or limit,
        vocab_size=network.config.vocab_size,
        eos_token_ids=tuple(sorted(end_token_ids(network, tokenizer.eos_token_id))),
        max_requests=config.max_requests,
        fingerprint=fingerprint(find_base(config.model)),
    )
