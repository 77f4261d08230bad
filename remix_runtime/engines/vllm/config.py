"""Settings of the vLLM engine, validated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from remix_runtime.engines.config import EngineConfig
from remix_runtime.errors import ConfigError

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The sizes of slots that vLLM has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig(EngineConfig):
    """What a `VllmEngine` is started with. Raises `ConfigError` on a value out of range.

    vLLM's own names: `max_running` is `max_num_seqs`, `max_tokens_per_step` is
    `max_num_batched_tokens`, `adapter_slots` is `max_loras`, `host_adapters` is `max_cpu_loras`,
    `adapter_rows` is `max_lora_rank`, `executor` is `distributed_executor_backend`.
    """

    max_tokens_per_step: int | None = None
    adapter_slots: int = 8
    host_adapters: Annotated[int, "Adapters in host memory."] = 64
    """Those on the device included. More may be loaded: the one unused longest ago leaves, and is
    read from its folder again when a request needs it."""
    adapter_rows: Annotated[int, "Experts times rank that a slot holds; one of vLLM's ranks."] = 64
    target_modules: Annotated[
        tuple[str, ...] | None,
        "A module of vLLM that takes adapters, as gate_up_proj; repeat for more. By default all "
        "do, at the cost of memory.",
    ] = None
    tensor_parallel_size: Annotated[int, "GPUs that share each layer."] = 1
    pipeline_parallel_size: Annotated[int, "GPUs between which the layers are divided."] = 1
    executor: Annotated[
        Literal["mp", "ray"] | None, "How workers are started; `ray` spans several nodes."
    ] = None
    gpu_memory_utilization: Annotated[
        float | None, "Share of a GPU's memory that vLLM takes; its own choice by default."
    ] = None
    enforce_eager: Annotated[bool, "Run without torch.compile and CUDA graphs."] = False
    engine_args: Annotated[
        Mapping[str, Any], "More of vLLM's engine arguments, as a JSON object."
    ] = field(default_factory=dict)

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
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
