"""What an adapter is, for people: the data of `remix check`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from remix_runtime.adapter.checkpoint.types import Checkpoint, Scaling, routing_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """An adapter in numbers. `num_parameters` counts experts and routers."""

    digest: str
    base_model_name_or_path: str
    target_modules: tuple[str, ...]
    num_layers: int
    """Adapted linears, not transformer blocks."""
    layers_by_target: dict[str, int]
    """Last name component of the adapted linears to how many there are."""
    num_experts: int
    top_k: int
    r: int
    routing_weight: float
    scaling: Scaling | None
    """The rule (`lora` or `rslora`) that gives ω for this k and r; None where neither does."""
    num_parameters: int
    num_active_parameters: int
    """Parameters of the routers and of the k experts that a token activates, over all layers."""
    num_bytes: int
    defaults: dict[str, Any]
    """What requests have that say nothing else; empty where the adapter has no `defaults.json`."""


def describe(checkpoint: Checkpoint) -> Description:
    """A summary of a validated adapter."""
    config = checkpoint.config
    experts = sum(w.a_nrD.numel() + w.b_nOr.numel() for w in checkpoint.layers.values())
    routers = sum(w.router_nD.numel() for w in checkpoint.layers.values())
    rules: tuple[Scaling, ...] = ("rslora", "lora")
    scaling = next(
        (
            rule
            for rule in rules
            if abs(routing_weight(rule, top_k=config.top_k, r=config.r) - config.routing_weight)
            <= 1e-6 * config.routing_weight
        ),
        None,
    )
    return Description(
        digest=checkpoint.digest,
        base_model_name_or_path=config.base_model_name_or_path,
        target_modules=config.target_modules,
        num_layers=len(checkpoint.layers),
        layers_by_target=dict(Counter(name.rsplit(".", 1)[-1] for name in checkpoint.layers)),
        num_experts=config.num_experts,
        top_k=config.top_k,
        r=config.r,
        routing_weight=config.routing_weight,
        scaling=scaling,
        num_parameters=experts + routers,
        num_active_parameters=experts // config.num_experts * config.top_k + routers,
        num_bytes=checkpoint.num_bytes,
        defaults=checkpoint.defaults.given(),
    )
