"""Selection rules and their law, against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from remix_runtime.adapter.routing import (
    effective_support_size,
    expert_mask,
    sample_experts,
    selection_log_prob,
    top_k_experts,
)


def sequential_probability(z: list[float], selection: tuple[int, ...]) -> float:
    """Draw after draw from the renormalised softmax, in plain floats."""
    rest = dict(enumerate(z))
    probability = 1.0
    for expert in selection:
        probability *= math.exp(rest[expert]) / sum(math.exp(value) for value in rest.values())
        del rest[expert]
    return probability


@pytest.mark.parametrize(("n", "k"), [(2, 1), (4, 2), (5, 3), (4, 4)])
def test_log_prob_is_that_of_drawing_one_after_the_other(n: int, k: int) -> None:
    z = torch.randn(n) * 1.5
    ordered = list(itertools.permutations(range(n), k))
    log_q = selection_log_prob(z.expand(len(ordered), n), torch.tensor(ordered))
    expected = torch.tensor([sequential_probability(z.tolist(), s) for s in ordered])
    torch.testing.assert_close(log_q.exp(), expected, rtol=1e-4, atol=1e-7)
    assert log_q.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_log_prob_survives_logits_whose_softmax_underflows() -> None:
    z = torch.tensor([145.0, -3.0, -37.0, -127.0], requires_grad=True)
    log_q = selection_log_prob(z, torch.tensor([0, 1]))
    assert log_q.item() == pytest.approx(0.0, abs=1e-4)
    unlikely = selection_log_prob(z, torch.tensor([3, 0]))
    assert unlikely.item() == pytest.approx(-272.0, abs=1e-2)
    unlikely.backward()
    assert torch.isfinite(z.grad).all()


def test_log_prob_has_the_gradient_of_its_definition() -> None:
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    selection = torch.stack([torch.randperm(5)[:3] for _ in range(3)])
    assert torch.autograd.gradcheck(lambda x: selection_log_prob(x, selection), z)


@pytest.mark.parametrize(("n", "k"), [(3, 1), (4, 2), (3, 3)])
def test_draws_follow_the_law_of_drawing_without_replacement(n: int, k: int) -> None:
    draws = 60_000
    generator = torch.Generator().manual_seed(11)
    z = torch.randn(n, generator=generator)
    selection = sample_experts(z.expand(draws, n), k, generator)
    ordered = list(itertools.permutations(range(n), k))
    base = torch.tensor([n**j for j in range(k)])
    codes = (selection * base).sum(-1)
    chi_square = 0.0
    for outcome in ordered:
        expected = draws * sequential_probability(z.tolist(), outcome)
        found = int((codes == (torch.tensor(outcome) * base).sum()).sum())
        chi_square += (found - expected) ** 2 / expected
    freedom = len(ordered) - 1
    # Mean f and variance 2f: five standard deviations, and the seed is fixed.
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_draws_repeat_with_their_generator_and_carry_no_gradient() -> None:
    z = torch.randn(7, 6, requires_grad=True)
    first = sample_experts(z, 3, torch.Generator().manual_seed(5))
    again = sample_experts(z, 3, torch.Generator().manual_seed(5))
    other = sample_experts(z, 3, torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad
    assert all(len(set(row)) == 3 for row in first.tolist())


def plain_top_k(row: list[float], k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]


@pytest.mark.parametrize("k", [1, 3, 6])
def test_top_k_breaks_ties_towards_the_lower_index(k: int) -> None:
    z = torch.randint(-1, 2, (500, 6)).float()  # three values: nearly every row has ties
    assert top_k_experts(z, k).tolist() == [plain_top_k(row, k) for row in z.tolist()]


def test_top_k_tells_apart_what_the_softmax_cannot() -> None:
    z = torch.tensor([-127.0, -37.0, 145.0, -3.0])
    assert top_k_experts(z, 3).tolist() == [2, 3, 1]
    assert torch.softmax(z, -1)[0] == torch.softmax(z, -1)[1] == 0


def test_the_mask_holds_exactly_the_selected() -> None:
    selection: Tensor = torch.tensor([[[3, 0], [1, 2]]])
    assert expert_mask(selection, 5).tolist() == [
        [[True, False, False, True, False], [False, True, True, False, False]]
    ]


def test_effective_support_size() -> None:
    for k in range(1, 9):
        gate = 0.37 * expert_mask(torch.randperm(8)[:k], 8)
        assert effective_support_size(gate).item() == pytest.approx(k)
    assert effective_support_size(torch.tensor([1.0, 0.0, 0.0])).item() == 1.0
    assert effective_support_size(torch.tensor([0.75, 0.25])).item() == pytest.approx(1.6)
    assert effective_support_size(torch.zeros(2, 3)).tolist() == [0.0, 0.0]
