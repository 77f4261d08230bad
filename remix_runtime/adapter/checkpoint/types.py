"""What an adapter is, in memory: its configuration, its tensors, its identity.

Shape suffixes: n experts, r LoRA rank, D input width, O output width of an adapted linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from remix_runtime.contracts import AdapterDefaults, TrainedLoad

FORMAT_VERSION = 1

Scaling = Literal["rslora", "lora"]


def routing_weight(scaling: Scaling, *, top_k: int, r: int) -> float:
    """The constant weight ω of every activated expert (ReMix, section 3)."""
    return 2.0 / math.sqrt(top_k * r) if scaling == "rslora" else 2.0 / (top_k * r)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What the tensors of an adapted linear are used with."""

    num_experts: int
    top_k: int
    r: int
    routing_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig(Mixture):
    """The content of `adapter_config.json` of a ReMix adapter: one mixture for all its linears."""

    base_model_name_or_path: str
    target_modules: tuple[str, ...]
    """Suffixes of module names, as in PEFT: `gate_proj` or `layers.0.mlp.gate_proj`. Their order
    means nothing; a checkpoint that is read has them sorted."""
    task_type: str = "CAUSAL_LM"
    revision: str | None = None
    """The base model's revision on the hub, as PEFT notes it; no part of the identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The content of `adapter_config.json` of a plain LoRA, in PEFT's words: of its fields those
    that say what it computes. A field that PEFT takes as one or many is many here."""

    base_model_name_or_path: str
    r: int
    """Of the layers that `rank_pattern` does not name."""
    lora_alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...] | str
    """Suffixes of module names, a regular expression for whole names, or `all-linear`."""
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Regular expressions for the last components of module names, and ranks; the first that fits
    counts."""
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    task_type: str = "CAUSAL_LM"
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The trained tensors of one adapted linear. Read from a folder they are float32; a plain LoRA
    is one expert with a router of zeros."""

    a_nrD: Tensor
    b_nOr: Tensor
    router_nD: Tensor


BaseShapes = Mapping[str, tuple[int, int]]
"""Every linear of a base model that could be adapted: module name to (O, D)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A validated adapter. `layers` and `mixtures` are keyed by module name, in sorted order."""

    config: AdapterConfig | LoraConfig
    layers: Mapping[str, LayerWeights]
    mixtures: Mapping[str, Mixture]
    digest: str
    num_bytes: int
    """Bytes of all tensors in memory."""
    defaults: AdapterDefaults = field(default_factory=AdapterDefaults)
    trained_load: TrainedLoad | None = None
    """None where training wrote none."""

    @property
    def num_experts(self) -> int:
        return max(mixture.num_experts for mixture in self.mixtures.values())

    @property
    def top_k(self) -> int:
        return max(mixture.top_k for mixture in self.mixtures.values())

    @property
    def r(self) -> int:
        """The largest rank of a layer."""
        return max(mixture.r for mixture in self.mixtures.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLimits:
    """Limits on a folder. Each is checked before the memory for it is taken."""

    num_experts: int = 256
    r: int = 1024
    target_modules: int = 4096
    config_bytes: int = 1 << 20
    header_bytes: int = 1 << 22
    tensor_bytes: int = 4 << 30
    """Bytes of the tensors as float32."""
    parity_bytes: int = 64 << 20


DEFAULT_LIMITS = CheckpointLimits()
