"""Settings of the vLLM engine, validated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from remix_runtime.engines.validate import check_common
from remix_runtime.errors import ConfigError

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The sizes of slots that vLLM has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig:
    """What a `VllmEngine` is started with. Raises `ConfigError` on a value out of range."""

    model: str
    """A folder, or the id of a model in the local Hugging Face cache."""
    served_model_name: str | None = None
    """The base's name in the API; the last part of `model` by default."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_running: int = 32
    """Requests that generate at the same time (vLLM's `max_num_seqs`)."""
    max_waiting: int = 256
    """Requests that wait for a place; one more is refused at once."""
    max_tokens_per_step: int | None = None
    """Prompt and decode tokens of one step (`max_num_batched_tokens`); None is vLLM's choice."""
    max_model_len: int | None = None
    """Prompt and completion tokens of one request; None is what the model was made for."""
    adapter_slots: int = 8
    """Adapters that are on the device at the same time (`max_loras`)."""
    host_adapters: int = 64
    """Adapters in host memory (`max_cpu_loras`), those on the device included. More may be loaded:
    the one unused longest ago leaves, and is read from its folder again when a request needs it."""
    adapter_rows: int = 64
    """Experts times rank that a slot can hold (`max_lora_rank`)."""
    target_modules: tuple[str, ...] | None = None
    """vLLM's modules that take adapters; None is all of them, at the cost of memory."""
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    executor: Literal["mp", "ray"] | None = None
    """How workers are started (`distributed_executor_backend`): `ray` spans nodes."""
    enforce_eager: bool = False
    gpu_memory_utilization: float | None = None
    """The part of a GPU's memory that vLLM takes; None is vLLM's choice."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """More of vLLM's engine arguments, by their Python names."""

    def __post_init__(self) -> None:
        check_common(self, self.served_model_name)
        if self.adapter_rows not in LORA_RANKS:
            raise ConfigError(
                f"adapter_rows: found {self.adapter_rows}, expected one of "
                f"{', '.join(map(str, LORA_RANKS))}"
            )
        if self.host_adapters < self.adapter_slots:
            raise ConfigError(
                f"host_adapters: found {self.host_adapters}, expected at least adapter_slots "
                f"({self.adapter_slots})"
            )
