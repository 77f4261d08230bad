"""Settings of the embedded engine, validated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remix_runtime.engines.validate import check_common
from remix_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedConfig:
    """What an `EmbeddedEngine` is started with. Raises `ConfigError` on a value out of range."""

    model: str
    """A folder, or the id of a model in the local Hugging Face cache."""
    served_model_name: str | None = None
    """The base's name in the API; the last part of `model` by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is float32 on the CPU (the fast type there) and bfloat16 on CUDA."""
    max_running: int = 32
    """Requests that generate at the same time."""
    max_waiting: int = 256
    """Requests that wait for a place; one more is refused at once."""
    max_tokens_per_step: int = 256
    """Prompt and decode tokens of one step. Smaller: a long prompt delays the others less."""
    kv_cache_bytes: int = 1 << 30
    adapter_slots: int = 16
    """Adapters that are ready on the device at the same time."""
    adapter_bytes: int = 1 << 30
    """Device memory for adapters."""
    host_adapter_bytes: int = 4 << 30
    """Host memory for adapters, those on the device included. More may be loaded than fit: the
    one unused longest ago leaves, and is read from its folder again when a request needs it."""
    threads: int | None = None
    """CPU threads; None keeps PyTorch's choice."""
    max_model_len: int | None = None
    """Prompt and completion tokens of one request; None is what the model was made for."""

    def __post_init__(self) -> None:
        check_common(self, self.served_model_name)
        if self.max_tokens_per_step < self.max_running:
            raise ConfigError(
                f"max_tokens_per_step: found {self.max_tokens_per_step}, expected at least "
                f"max_running ({self.max_running}), so that every running request can move"
            )
