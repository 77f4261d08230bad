"""Settings of the embedded engine, validated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from remix_runtime.engines.config import EngineConfig
from remix_runtime.errors import ConfigError

Weights = Literal["stored", "float32", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedConfig(EngineConfig):
    """What an `EmbeddedEngine` is started with. Raises `ConfigError` on a value out of range."""

    max_tokens_per_step: Annotated[
        int, "Prompt and decode tokens of one step; with fewer, a long prompt delays others less."
    ] = 256
    adapter_slots: Annotated[int, "Adapters on the device at the same time."] = 16
    device: Annotated[Literal["auto", "cpu", "cuda"], "Where the model runs."] = "auto"
    weights: Annotated[
        Weights,
        "How the base's weights are held. `stored`: as in their files: 16-bit ones take half the "
        "memory of `float32` and give the same answers, faster; on a GPU, and without native "
        "kernels, in the type of `--dtype`. `int8`: a quarter of `float32`, faster still for a few "
        "requests; answers differ a little. It needs the CPU's native kernels.",
    ] = "stored"
    kv_cache_bytes: Annotated[int, "Memory for keys and values."] = 1 << 30
    prefix_cache: Annotated[
        bool, "Keep keys and values of past texts in what is free of their memory."
    ] = True
    adapter_bytes: Annotated[int, "Device memory for adapters."] = 1 << 30
    host_adapter_bytes: Annotated[int, "Host memory for adapters."] = 4 << 30
    """Those on the device included. More may be loaded than fit: the one unused longest ago
    leaves, and is read from its folder again when a request needs it."""
    proposals: Annotated[
        bool,
        "Guess next tokens from what the prompt and the answer repeat, and check several in one "
        "step: the same answers, sooner for JSON, code edits and quotations. On the CPU only.",
    ] = True
    threads: Annotated[int | None, "CPU threads; PyTorch's choice by default."] = None

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        if self.max_tokens_per_step < self.max_running:
            raise ConfigError(
                f"max_tokens_per_step: found {self.max_tokens_per_step}, expected at least "
                f"max_running ({self.max_running}), so that every running request can move"
            )
