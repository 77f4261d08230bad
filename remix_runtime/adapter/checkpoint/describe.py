"""What an adapter is, for people: the data of `remix check`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from remix_runtime.adapter.checkpoint.types import (
    AdapterConfig,
    Checkpoint,
    LoraConfig,
    Scaling,
    routing_weight,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """An adapter in numbers. `num_parameters` counts experts and routers."""

    kind: Literal["ReMix", "LoRA"]
    digest: str
    base_model_name_or_path: str
    target_modules: tuple[str, ...]
    """Or the one regular expression of a plain LoRA."""
    num_layers: int
    """Adapted linears, not transformer blocks."""
    layers_by_target: dict[str, int]
    """Last name component of the adapted linears to how many there are."""
    num_experts: int
    top_k: int
    r: int
    """The largest of a layer, as is ω: those of a plain LoRA may differ between layers."""
    routing_weight: float
    scaling: Scaling | None
    """The rule (`lora` or `rslora`) that gives ω for this k and r; None where neither does."""
    num_ranks: int
    """How many different pairs of a rank and ω there are."""
    num_parameters: int
    num_active_parameters: int
    """Parameters of the routers and of the k experts that a token activates, over all layers."""
    num_bytes: int
    defaults: dict[str, Any]
    """What requests have that say nothing else; empty where the adapter has no `defaults.json`."""


def describe(checkpoint: Checkpoint) -> Description:
    """A summary of a validated adapter."""
    config = checkpoint.config
    is_lora = isinstance(config, LoraConfig)
    experts = sum(w.a_nrD.numel() + w.b_nOr.numel() for w in checkpoint.layers.values())
    routers = 0 if is_lora else sum(w.router_nD.numel() for w in checkpoint.layers.values())
    targets = config.target_modules
    return Description(
        kind="LoRA" if is_lora else "ReMix",
        digest=checkpoint.digest,
        base_model_name_or_path=config.base_model_name_or_path,
        target_modules=(targets,) if isinstance(targets, str) else targets,
        num_layers=len(checkpoint.layers),
        layers_by_target=dict(Counter(name.rsplit(".", 1)[-1] for name in checkpoint.layers)),
        num_experts=checkpoint.num_experts,
        top_k=checkpoint.top_k,
        r=checkpoint.r,
        routing_weight=max(m.routing_weight for m in checkpoint.mixtures.values()),
        scaling=_scaling(config),
        num_ranks=len({(m.r, m.routing_weight) for m in checkpoint.mixtures.values()}),
        num_parameters=experts + routers,
        num_active_parameters=experts // checkpoint.num_experts * checkpoint.top_k + routers,
        num_bytes=checkpoint.num_bytes,
        defaults=checkpoint.defaults.given(),
    )


def _scaling(config: AdapterConfig | LoraConfig) -> Scaling | None:
    if isinstance(config, LoraConfig):
        return "rslora" if config.use_rslora else "lora"
    rules: tuple[Scaling, ...] = ("rslora", "lora")
    return next(
        (
            rule
            for rule in rules
            if abs(routing_weight(rule, top_k=config.top_k, r=config.r) - config.routing_weight)
            <= 1e-6 * config.routing_weight
        ),
        None,
    )
