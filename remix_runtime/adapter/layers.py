"""One ReMix adapter on a model, in plain differentiable PyTorch: the readable truth.

Training uses these modules, and every kernel and engine is compared with them.

Shape suffixes: T tokens (any leading shape), D input width, O output width, n experts,
k activated experts, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remix_runtime.adapter.checkpoint.targets import target_shapes as target_shapes
from remix_runtime.adapter.checkpoint.types import (
    AdapterConfig,
    Checkpoint,
    LayerWeights,
    Mixture,
)
from remix_runtime.adapter.routing import expert_mask, top_k_experts
from remix_runtime.errors import CheckpointMismatchError

SelectExperts = Callable[[Tensor, int], Tensor]
"""(router logits [..., n], k) to expert indices [..., k]."""


@dataclass(slots=True)
class RouteTrace:
    """What the routers of a model did during the forward passes inside `trace_routes`."""

    logits: dict[str, list[Tensor]] = field(default_factory=dict)
    """Module name to router logits [..., n] of each pass, still attached to the router's graph."""
    selections: dict[str, list[Tensor]] = field(default_factory=dict)
    """Module name to expert indices [..., k] of each pass."""

    def record(self, name: str, z_Tn: Tensor, selection_Tk: Tensor) -> None:
        self.logits.setdefault(name, []).append(z_Tn)
        self.selections.setdefault(name, []).append(selection_Tk)


class Routed(nn.Module):
    """A linear whose tokens select experts: by top-k, unless training replaces the rule."""

    name: str
    """The module's name in the model."""
    select: SelectExperts = staticmethod(top_k_experts)
    trace: RouteTrace | None = None

    def choose(self, z_Tn: Tensor, k: int) -> Tensor:
        """Expert indices [..., k] by the rule, noted in the trace if there is one."""
        selection_Tk = self.select(z_Tn, k)
        if self.trace is not None:
            self.trace.record(self.name, z_Tn, selection_Tk)
        return selection_Tk


class RemixLinear(Routed):
    """y = W x + ω · sum over i in I of B_i A_i x, with I chosen per token (equations 4-6).

    `select` is the selection rule: the deterministic top-k unless training replaces it.
    """

    def __init__(self, base: nn.Linear, *, name: str, config: Mixture) -> None:
        super().__init__()
        n, r = config.num_experts, config.r
        device = base.weight.device
        self.base = base.requires_grad_(False)
        self.name = name
        self.top_k = config.top_k
        self.routing_weight = config.routing_weight
        self.a_nrD = nn.Parameter(torch.empty(n, r, base.in_features, device=device))
        self.b_nOr = nn.Parameter(torch.zeros(n, base.out_features, r, device=device))
        self.router_nD = nn.Parameter(torch.empty(n, base.in_features, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """B = 0, so training starts from the base model; A and the router as nn.Linear."""
        for a_rD in self.a_nrD:
            nn.init.kaiming_uniform_(a_rD, a=5**0.5)
        nn.init.zeros_(self.b_nOr)
        nn.init.kaiming_uniform_(self.router_nD, a=5**0.5)

    def router_logits(self, x_TD: Tensor) -> Tensor:
        """z = P x in float32. The input is detached: only the router receives this gradient."""
        return router_logits(x_TD.detach(), self.router_nD)

    def mixture(self, x_TD: Tensor, z_Tn: Tensor, selection_Tk: Tensor) -> Tensor:
        """ω · sum over the selected experts of B_i A_i x, float32 [..., O]."""
        gate_Tn = self.routing_weight * expert_mask(selection_Tk, z_Tn.shape[-1])
        return self.weighted_experts(x_TD, gate_Tn)

    def weighted_experts(self, x_TD: Tensor, gate_Tn: Tensor) -> Tensor:
        """Sum over experts of gate_i · B_i A_i x, float32 [..., O]. Training may do it in the type
        of the base."""
        return weighted_experts(x_TD, self.a_nrD, self.b_nOr, gate_Tn)

    def forward(self, x_TD: Tensor) -> Tensor:
        z_Tn = self.router_logits(x_TD)
        y_TO: Tensor = self.base(x_TD)
        return y_TO + self.mixture(x_TD, z_Tn, self.choose(z_Tn, self.top_k)).to(y_TO.dtype)

    def weights(self) -> LayerWeights:
        """The trained tensors, detached and on the CPU."""
        a, b, p = (w.detach().cpu().clone() for w in (self.a_nrD, self.b_nOr, self.router_nD))
        return LayerWeights(a_nrD=a, b_nOr=b, router_nD=p)


def router_logits(x_TD: Tensor, router_nD: Tensor) -> Tensor:
    """P x in float32, within `torch.autocast` too: in a coarser type ties are common."""
    with torch.autocast(x_TD.device.type, enabled=False):
        return F.linear(x_TD.float(), router_nD.float())


def weighted_experts(x_TD: Tensor, a_nrD: Tensor, b_nOr: Tensor, gate_Tn: Tensor) -> Tensor:
    """Sum over experts of gate_i · B_i A_i x, [..., O]: two products and a gate between, in the
    type of the experts, which is float32 but in training."""
    n, r, _ = a_nrD.shape
    h_Tm = F.linear(x_TD.to(a_nrD.dtype), a_nrD.flatten(0, 1))
    h_Tm = (h_Tm * gate_Tn.repeat_interleave(r, dim=-1)).to(a_nrD.dtype)
    b_Om = b_nOr.transpose(0, 1).reshape(-1, n * r)
    return F.linear(h_Tm, b_Om)


def base_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Module name to (O, D) of every linear of the model, the output head left out."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def attach(
    model: nn.Module, config: AdapterConfig, layer_type: type[RemixLinear] = RemixLinear
) -> dict[str, RemixLinear]:
    """Replaces the target linears of `model` in place and freezes everything else.

    Returns module name to new layer, in sorted order.
    """
    names = target_shapes(base_shapes(model), config.target_modules)
    return _attach(model, dict.fromkeys(names, config), layer_type)


def _attach(
    model: nn.Module, mixtures: Mapping[str, Mixture], layer_type: type[RemixLinear]
) -> dict[str, RemixLinear]:
    model.requires_grad_(False)
    layers: dict[str, RemixLinear] = {}
    for name, config in mixtures.items():
        parent_name, _, child_name = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        layers[name] = layer_type(base, name=name, config=config)
        setattr(parent, child_name, layers[name])
    return layers


def attach_checkpoint(model: nn.Module, checkpoint: Checkpoint) -> dict[str, RemixLinear]:
    """`attach`, with the tensors of a validated checkpoint."""
    if foreign := checkpoint.mixtures.keys() - base_shapes(model).keys():
        raise CheckpointMismatchError(f"the base model has no linear {min(foreign)}")
    return _fill(_attach(model, checkpoint.mixtures, RemixLinear), checkpoint.layers)


def attach_weights(
    model: nn.Module, config: AdapterConfig, weights: Mapping[str, LayerWeights]
) -> dict[str, RemixLinear]:
    """`attach`, with tensors by module name. Raises `CheckpointMismatchError` for other names."""
    return _fill(attach(model, config), weights)


def _fill(
    layers: dict[str, RemixLinear], weights: Mapping[str, LayerWeights]
) -> dict[str, RemixLinear]:
    if layers.keys() != weights.keys():
        odd = sorted(layers.keys() ^ weights.keys())
        raise CheckpointMismatchError(f"adapter and base model differ in layer {odd[0]}")
    with torch.no_grad():
        for name, layer in layers.items():
            layer.a_nrD.copy_(weights[name].a_nrD)
            layer.b_nOr.copy_(weights[name].b_nOr)
            layer.router_nD.copy_(weights[name].router_nD)
    return layers


def detach(model: nn.Module, layers: dict[str, RemixLinear]) -> None:
    """Puts the base linears back: the inverse of `attach`."""
    for name, layer in layers.items():
        parent_name, _, child_name = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child_name, layer.base)


@contextmanager
def trace_routes(layers: Mapping[str, Routed]) -> Iterator[RouteTrace]:
    """Records every routing decision of `layers` while the context is open."""
    trace = RouteTrace()
    for layer in layers.values():
        layer.trace = trace
    try:
        yield trace
    finally:
        for layer in layers.values():
            layer.trace = None
