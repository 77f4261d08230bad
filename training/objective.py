"""One pass of a training step: forward with drawn selections, loss, routing statistics.

Shape suffixes: B sequences, T positions, L adapted layers, n experts, k activated experts, D input
width, O output width; in rows as the model sees them P and L.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remix_runtime.adapter.layers import (
    RemixLinear,
    Routed,
    RouteTrace,
    SelectExperts,
    attach,
    router_logits,
    trace_routes,
    weighted_experts,
)
from remix_runtime.adapter.routing import (
    effective_support_size,
    expert_mask,
    sample_experts,
    top_k_experts,
)
from training.completion_loss import completion_shares
from training.config import TrainConfig
from training.data import Batch, require_rows
from training.losses import (
    Credit,
    remix_loss,
    route_log_probs,
    routing_entropy,
    supervised_loss,
)
from training.packing import packed
from training.router_rates import InputSizes, watching
from training.trunk import Trunk, beyond

Layers = dict[str, RemixLinear]


class TrainedLinear(RemixLinear):
    """The layer as it is trained: experts in float32, their products in the type of the base, which
    sums in float32. In a float32 base it is `RemixLinear`, bit for bit."""

    def weighted_experts(self, x_TD: Tensor, gate_Tn: Tensor) -> Tensor:
        a_nrD, b_nOr = self.a_nrD.to(x_TD.dtype), self.b_nOr.to(x_TD.dtype)
        return weighted_experts(x_TD, a_nrD, b_nOr, gate_Tn)


class SoftmaxLinear(TrainedLinear):
    """The baseline: top-k experts weighted by a softmax that learns by back-propagation.

    The weights of a token sum to ω·k, what ReMix's k equal weights sum to.
    """

    def router_logits(self, x_TD: Tensor) -> Tensor:
        return router_logits(x_TD, self.router_nD)

    def mixture(self, x_TD: Tensor, z_Tn: Tensor, selection_Tk: Tensor) -> Tensor:
        total = self.routing_weight * self.top_k
        return self.weighted_experts(x_TD, total * softmax_gate(z_Tn, selection_Tk))


def softmax_gate(z_Tn: Tensor, selection_Tk: Tensor) -> Tensor:
    """The softmax over the selected experts' logits, [..., n]; 0 for the other experts."""
    weights_Tk = torch.softmax(z_Tn.gather(-1, selection_Tk), dim=-1)
    return torch.zeros_like(z_Tn).scatter(-1, selection_Tk, weights_Tk)


def attach_method(model: PreTrainedModel, config: TrainConfig) -> Layers:
    """Puts the method's trainable layers into `model`, initialised from the config's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        layer_type = SoftmaxLinear if config.method == "softmax" else TrainedLinear
        layers = attach(model, config.adapter, layer_type)
    for layer in layers.values():
        if config.method == "lora":  # one expert: nothing to route, and no logits to learn
            torch.nn.init.zeros_(layer.router_nD)
        if config.method == "lora" or config.router == "random":
            layer.router_nD.requires_grad_(False)
    return layers


@contextmanager
def selecting(layers: Mapping[str, Routed], rule: SelectExperts) -> Iterator[None]:
    """Makes every layer select by `rule` while the context is open, and by top-k afterwards."""
    for layer in layers.values():
        layer.select = rule
    try:
        yield
    finally:
        for layer in layers.values():
            layer.select = top_k_experts


def sampling_rule(generator: torch.Generator, batch: Batch | None = None) -> SelectExperts:
    """Draws from the routing distribution, as training does: for the tokens of a batch in their
    order, wherever the model has them."""
    if batch is None:
        return lambda z_Tn, k: sample_experts(z_Tn, k, generator)
    return lambda z_PLn, k: batch.side_by_side(sample_experts(batch.apart(z_PLn), k, generator))


@dataclass(frozen=True, slots=True)
class RoutingStats:
    """Routing statistics of one pass, over real tokens."""

    entropy: float
    """Mean entropy of the routing distribution, in nats; ln n is uniform."""
    support: float
    """Mean effective support size of the routing weights."""
    load_Ln: Tensor
    """Share of the tokens that activate each expert; a row sums to k."""


def routing_stats(
    logits_LBTn: Tensor, selection_LBTk: Tensor, mask_BT: Tensor, *, softmax: bool
) -> RoutingStats:
    logits_LBTn = logits_LBTn.detach()
    chosen_LBTn = expert_mask(selection_LBTk, logits_LBTn.shape[-1]).float()
    gate_LBTn = softmax_gate(logits_LBTn, selection_LBTk) if softmax else chosen_LBTn
    return RoutingStats(
        entropy=routing_entropy(logits_LBTn)[:, mask_BT].mean().item(),
        support=effective_support_size(gate_LBTn)[:, mask_BT].mean().item(),
        load_Ln=chosen_LBTn[:, mask_BT].mean(1).cpu(),
    )


def pass_loss(
    model: PreTrainedModel,
    layers: Layers,
    batch: Batch,
    config: TrainConfig,
    generator: torch.Generator,
    trunk: Trunk | None = None,
    sizes: InputSizes | None = None,
) -> tuple[Tensor, dict[str, float], RoutingStats]:
    """The loss of one pass by the config's method, its metrics and the routing statistics.

    The baselines see each example once and take the top-k. A `trunk` sees each example once at
    most. `sizes` looks at the layers' inputs.
    """
    if config.method == "remix":
        return remix_pass(
            model,
            layers,
            batch,
            selections=config.selections,
            credit=config.credit,
            generator=generator,
            trunk=trunk,
            sizes=sizes,
            width=config.packed_width,
        )
    seen = batch_as_seen(batch, config)
    with (
        beyond(trunk, model, batch, seen),
        watching(sizes, seen),
        trace_routes(layers) as trace,
    ):
        share_BT = completion_shares(model, seen)
    loss, metrics = supervised_loss(share_BT)
    stats = routing_stats(*stacked(trace, seen), batch.mask_BT, softmax=config.method == "softmax")
    return loss, metrics, stats


def batch_as_seen(batch: Batch, config: TrainConfig) -> Batch:
    """The rows of a pass as the model sees them: every copy, packed where the config says so."""
    return _seen(batch, config.copies, config.packed_width)


def _seen(batch: Batch, copies: int, width: int | None) -> Batch:
    seen = batch.repeat(copies)
    return packed(seen, width=width) if width else seen


def remix_pass(
    model: PreTrainedModel,
    layers: Mapping[str, Routed],
    batch: Batch,
    *,
    selections: int,
    credit: Credit,
    generator: torch.Generator,
    trunk: Trunk | None = None,
    sizes: InputSizes | None = None,
    width: int | None = None,
) -> tuple[Tensor, dict[str, float], RoutingStats]:
    """ReMix's `pass_loss`: the M selections of every example as one batch, each drawn from the
    routers. With `width` they are packed into rows of at most so many tokens."""
    seen = _seen(batch, selections, width)
    with (
        beyond(trunk, model, batch, seen),
        watching(sizes, seen),
        selecting(layers, sampling_rule(generator, seen)),
        trace_routes(layers) as trace,
    ):
        share_BT = completion_shares(model, seen)
    logits_LBTn, selection_LBTk = stacked(trace, seen)
    log_q_BT = route_log_probs(logits_LBTn, selection_LBTk, seen.mask_BT)
    loss, metrics = remix_loss(share_BT, log_q_BT, selections=selections, credit=credit)
    stats = routing_stats(logits_LBTn, selection_LBTk, seen.mask_BT, softmax=False)
    return loss, metrics, stats


def stacked(trace: RouteTrace, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [L, B, T, n] and selections [L, B, T, k] of a trace of one forward pass over a batch.

    Layers in sorted order of their names. Raises `ConfigError` for a layer that sees no rows.
    """
    names = sorted(trace.logits)
    shape = batch.model_inputs()["input_ids"].shape
    for name in names:
        require_rows(name, trace.logits[name][0], shape)
    return (
        torch.stack([batch.apart(trace.logits[name][0]) for name in names]),
        torch.stack([batch.apart(trace.selections[name][0]) for name in names]),
    )
