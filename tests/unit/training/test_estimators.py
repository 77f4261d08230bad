"""Both RLOO estimators against the exact gradient, by enumeration of all ordered selections.

A toy of two ReMix layers and three tokens with causal mixing has 6^6 joint selections, few enough
to sum over. The same check must reject broken estimators: what it cannot tell apart it does not
test.

Shape suffixes: S simulated sets of M selections, B = S·M rows, T = 3 tokens, D width,
n = 3 experts, k = 2 activated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from remix_runtime.adapter.checkpoint.types import AdapterConfig
from remix_runtime.adapter.layers import RemixLinear, trace_routes
from remix_runtime.adapter.routing import sample_experts, selection_log_prob
from training.losses import (
    Credit,
    loss_to_go,
    remix_loss,
    rloo_advantages,
    route_log_probs,
    router_surrogate,
)

N, K, T, D, M = 3, 2, 3, 4, 3
SETS = 60_000
STANDARD_ERRORS = 5.0

Objective = Callable[[Tensor, Tensor], Tensor]
"""(loss shares [B, T], log Q [B, T]) to a scalar whose gradient is the estimate."""


class Toy:
    """x → ReMix → tanh → causal mean → ReMix → a loss per token."""

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(*shape, generator=random)

        config = AdapterConfig(
            base_model_name_or_path="toy",
            num_experts=N,
            top_k=K,
            r=2,
            routing_weight=0.8,
            target_modules=("linear",),
        )
        self.layers: dict[str, RemixLinear] = {}
        for name in ("first", "second"):
            layer = RemixLinear(nn.Linear(D, D), name=name, config=config)
            with torch.no_grad():
                layer.base.weight.copy_(draw(D, D, scale=0.5))
                layer.a_nrD.copy_(draw(N, 2, D))
                layer.b_nOr.copy_(draw(N, D, 2))
                layer.router_nD.copy_(draw(N, D, scale=0.7))
            self.layers[name] = layer
        self.x_TD, self.target_TD = draw(T, D), draw(T, D)

    def shares(self, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss shares [B, T] of `rows` runs, and the input [B, T, D] of every layer."""
        x_BTD = self.x_TD.expand(rows, T, D)
        mixed_BTD = torch.tanh(self.layers["first"](x_BTD)).cumsum(1)
        mixed_BTD = mixed_BTD / torch.arange(1, T + 1).view(1, T, 1)
        out_BTD = self.layers["second"](mixed_BTD)
        share_BT = (out_BTD - self.target_TD).square().mean(-1) / T
        return share_BT, {"first": x_BTD, "second": mixed_BTD.detach()}


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy(seed=7)


@pytest.fixture(scope="module")
def exact(toy: Toy) -> Tensor:
    """∇ over both routers of sum over I of Q(I) L(I), flattened."""
    ordered = torch.tensor(list(itertools.permutations(range(N), K)))
    slots = 2 * T
    joint = torch.cartesian_prod(*[torch.arange(len(ordered))] * slots)
    selections = {
        "first": ordered[joint[:, :T]],
        "second": ordered[joint[:, T:]],
    }
    for name, layer in toy.layers.items():
        layer.select = lambda z, k, name=name: selections[name]
    with trace_routes(toy.layers) as trace:
        share_BT, _ = toy.shares(len(joint))
    log_q_B = sum(
        selection_log_prob(trace.logits[name][0], selections[name]).sum(-1) for name in toy.layers
    )
    probability_B = log_q_B.exp()
    assert probability_B.sum().item() == pytest.approx(1.0, abs=1e-4)
    expected_loss = (probability_B * share_BT.sum(-1).detach()).sum()
    routers = [layer.router_nD for layer in toy.layers.values()]
    gradients = torch.autograd.grad(expected_loss, routers)
    return torch.cat([g.flatten() for g in gradients])


@dataclass(frozen=True)
class Estimate:
    mean: Tensor
    standard_error: Tensor
    variance: float

    def worst(self, exact: Tensor) -> float:
        """Largest distance from `exact` of any component, in standard errors."""
        return ((self.mean - exact).abs() / self.standard_error).max().item()


def simulate(toy: Toy, objective: Objective, *, seed: int) -> Estimate:
    """The estimator's mean over SETS independent sets of M selections of one example."""
    random = torch.Generator().manual_seed(seed)
    for layer in toy.layers.values():
        layer.select = lambda z, k: sample_experts(z, k, random)
    with trace_routes(toy.layers) as trace:
        share_BT, inputs = toy.shares(SETS * M)
    logits = [trace.logits[name][0] for name in toy.layers]
    chosen = [trace.selections[name][0] for name in toy.layers]
    log_q_BT = route_log_probs(
        torch.stack(logits), torch.stack(chosen), torch.ones(SETS * M, T, dtype=torch.bool)
    )
    # The objective averages over examples; each set is one, so undo the mean to see each alone.
    per_logit = torch.autograd.grad(SETS * objective(share_BT, log_q_BT), logits)
    per_set = [
        torch.einsum("btn,btd->bnd", g, x).view(SETS, M, -1).sum(1)
        for g, x in zip(per_logit, inputs.values(), strict=True)
    ]
    gradient_SG = torch.cat(per_set, dim=-1).double()
    variance_G = gradient_SG.var(0)
    return Estimate(
        mean=gradient_SG.mean(0),
        standard_error=(variance_G / SETS).sqrt(),
        variance=variance_G.sum().item(),
    )


def remix(credit: Credit) -> Objective:
    return lambda share, log_q: remix_loss(share, log_q, selections=M, credit=credit)[0]


def surrogate_of(costs: Callable[[Tensor], Tensor], *, sign: float = 1.0, baseline: bool = True):
    """An estimator that charges position t with `costs`, with the parts that mutants leave out."""

    def objective(share_BT: Tensor, log_q_BT: Tensor) -> Tensor:
        cost_SMT = costs(share_BT.detach()).view(SETS, M, T)
        if baseline:
            cost_SMT = cost_SMT - cost_SMT.mean(1, keepdim=True)
        return router_surrogate(sign * cost_SMT.view(-1, T), log_q_BT, selections=M)

    return objective


def whole(share_BT: Tensor) -> Tensor:
    return share_BT.sum(-1, keepdim=True).expand_as(share_BT)


MUTANTS: dict[str, Objective] = {
    "wrong sign, sequence": surrogate_of(whole, sign=-1),
    "wrong sign, causal": surrogate_of(loss_to_go, sign=-1),
    "no baseline, sequence": surrogate_of(whole, baseline=False),
    "no baseline, causal": surrogate_of(loss_to_go, baseline=False),
    "loss after t only": surrogate_of(lambda share: loss_to_go(share) - share),
    "loss at t only": surrogate_of(lambda share: share),
    "loss up to t": surrogate_of(lambda share: share.cumsum(-1)),
    "divided by M": lambda share, log_q: remix("causal")(share, log_q) * (M - 1) / M,
}


@pytest.mark.parametrize("credit", ["sequence", "causal"])
def test_the_estimator_is_unbiased(toy: Toy, exact: Tensor, credit: Credit) -> None:
    estimate = simulate(toy, remix(credit), seed=1)
    assert estimate.worst(exact) < STANDARD_ERRORS
    # Sharp enough to mean something: errors are small beside the gradient itself.
    assert estimate.standard_error.norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_same_check_rejects(toy: Toy, exact: Tensor, mutant: str) -> None:
    assert simulate(toy, MUTANTS[mutant], seed=1).worst(exact) > STANDARD_ERRORS


def test_the_mutants_are_the_estimator_but_for_their_fault(toy: Toy, exact: Tensor) -> None:
    for costs in (whole, loss_to_go):
        assert simulate(toy, surrogate_of(costs), seed=2).worst(exact) < STANDARD_ERRORS


def test_causal_credit_has_the_lower_variance(toy: Toy) -> None:
    causal = simulate(toy, remix("causal"), seed=3).variance
    assert causal < 0.9 * simulate(toy, remix("sequence"), seed=3).variance


def test_advantages_of_one_example_sum_to_zero_and_do_not_leak_to_another() -> None:
    share_BT = torch.randn(2 * M, T, requires_grad=True)
    for credit in ("sequence", "causal"):
        advantage = rloo_advantages(share_BT, selections=M, credit=credit)
        assert not advantage.requires_grad
        torch.testing.assert_close(advantage.view(2, M, T).sum(1), torch.zeros(2, T))
        changed = share_BT.detach().clone()
        changed[M:] += torch.randn(M, T)
        other = rloo_advantages(changed, selections=M, credit=credit)
        assert torch.equal(other[:M], advantage[:M])
        assert not torch.equal(other[M:], advantage[M:])


def test_losses_that_are_equal_but_for_rounding_give_no_advantage() -> None:
    """With B = 0 every selection has the same loss; AdamW would make whole steps of the noise."""
    share_BT = torch.rand(1, T).add(1.0).repeat(M, 1)
    noisy_BT = share_BT * (1 + 1e-6 * torch.randn(M, T))
    assert not torch.equal(noisy_BT, share_BT)
    for credit in ("sequence", "causal"):
        advantage_BT = rloo_advantages(noisy_BT, selections=M, credit=credit)
        assert torch.equal(advantage_BT, torch.zeros(M, T))
        apart_BT = share_BT * torch.tensor([[1.001], [1.0], [0.999]])
        assert rloo_advantages(apart_BT, selections=M, credit=credit)[0].gt(0).all()
