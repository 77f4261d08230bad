"""Statistics of the load of experts: bounds, invariances, samples, flags."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.adapter.load import (
    ALIKE,
    COLLAPSE,
    DRIFT,
    MIN_TOKENS,
    Routing,
    RoutingFlag,
    chance_divergence,
    divergence,
    judge,
    tokens_needed,
)
from remix_runtime.contracts import TrainedLoad

Load = dict[str, list[int]]


def drawn(
    seed: int, *, n: int, k: int, tokens: int, modules: int = 3, weights: np.ndarray | None = None
) -> Load:
    """Top-k of random logits, whose means are the logarithms of `weights`."""
    rng = np.random.default_rng(seed)
    means_n = np.zeros(n) if weights is None else np.log(weights)
    load = {}
    for i in range(modules):
        z_Tn = means_n + rng.normal(size=(tokens, n))
        routes_Tk = np.argsort(-z_Tn, axis=1)[:, :k]
        load[f"m{i}"] = np.bincount(routes_Tk.ravel(), minlength=n).tolist()
    return load


def trained(load: Load, k: int) -> TrainedLoad:
    return TrainedLoad(tokens=sum(load["m0"]) // k, modules=load)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Load, TrainedLoad | None, int, int]:
    n = draw(st.integers(2, 12))
    k = draw(st.integers(1, n - 1))
    seed = draw(st.integers(0, 2**32))
    tokens = draw(st.integers(1, 2 * tokens_needed(n, k)))
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=n) ** draw(st.sampled_from([0.0, 1.0, 8.0])) + 1e-9
    load = drawn(seed, n=n, k=k, tokens=tokens, weights=weights)
    reference = None
    if draw(st.booleans()):
        reference = trained(drawn(seed + 1, n=n, k=k, tokens=draw(st.integers(1, 5000))), k)
    return load, reference, n, k


@settings(max_examples=60, deadline=None)
@given(cases())
def test_figures_stay_in_their_bounds(case: tuple[Load, TrainedLoad | None, int, int]) -> None:
    load, reference, n, k = case
    found = judge(load, k=k, trained=reference)
    tokens = sum(load["m0"]) // k
    assert found.tokens == tokens
    assert found.enough == (tokens >= tokens_needed(n, k))
    assert [m.module for m in found.modules] == list(load)
    assert [list(m.activations) for m in found.modules] == list(load.values())
    for figures in (found, *found.modules):
        assert (figures.entropy is None) == (figures.effective_experts is None) != found.enough
        assert (figures.drift is not None) == (found.enough and reference is not None)
        if figures.entropy is not None and figures.effective_experts is not None:
            assert math.log(k) / math.log(n) - 1e-9 <= figures.entropy <= 1
            assert k - 1e-9 <= figures.effective_experts <= n + 1e-9
        if figures.drift is not None:
            assert 0 <= figures.drift <= 1
    for module in found.modules:
        assert (module.trained is not None) == (reference is not None)
        if module.trained is not None:
            assert sum(module.trained) == pytest.approx(1)
            assert len(module.trained) == n
        assert len(module.dead_experts) <= n - k
        assert all(load[module.module][i] <= tokens * k / n / 100 for i in module.dead_experts)
    assert found.dead_experts == sum(len(m.dead_experts) for m in found.modules)


def _close(a: Routing, b: Routing) -> None:
    assert (a.tokens, a.enough, a.flags, a.dead_experts) == (
        *(b.tokens, b.enough, b.flags, b.dead_experts),
    )
    for field in ("entropy", "effective_experts", "drift"):
        x, y = getattr(a, field), getattr(b, field)
        assert (x is None) == (y is None)
        assert x is None or x == pytest.approx(y, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_experts_and_modules_means_nothing(
    case: tuple[Load, TrainedLoad | None, int, int], random: object
) -> None:
    load, reference, n, k = case
    order = list(range(n))
    random.shuffle(order)  # type: ignore[attr-defined]

    def shuffled(modules: Load) -> Load:
        return {name: [modules[name][i] for i in order] for name in reversed(modules)}

    other = None
    if reference is not None:
        other = TrainedLoad(tokens=reference.tokens, modules=shuffled(reference.modules))
    before, after = judge(load, k=k, trained=reference), judge(shuffled(load), k=k, trained=other)
    _close(before, after)
    for module, same in zip(before.modules, reversed(after.modules), strict=True):
        assert sorted(order[i] for i in same.dead_experts) == list(module.dead_experts)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 16), st.integers(0, 2**32))
def test_divergence_is_symmetric_and_zero_only_between_equals(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_Ln, q_Ln = (rng.dirichlet(np.ones(n), size=4) for _ in "pq")
    assert np.allclose(divergence(p_Ln, q_Ln), divergence(q_Ln, p_Ln))
    assert np.allclose(divergence(p_Ln, p_Ln), 0)
    assert (divergence(p_Ln, q_Ln) > 0).all()
    halves = np.zeros((1, 2 * n))
    halves[0, :n] = 1 / n
    assert divergence(halves, halves[:, ::-1]) == pytest.approx(1)


@pytest.mark.parametrize(("n", "k"), [(8, 4), (8, 1), (16, 2), (4, 3)])
def test_chance_is_what_independent_tokens_show(n: int, k: int) -> None:
    found = []
    for seed in range(60):
        pair = [drawn(2 * seed + i, n=n, k=k, tokens=1000, modules=1)["m0"] for i in range(2)]
        p_Ln, q_Ln = (np.array([counts]) / sum(counts) for counts in pair)
        found.append(float(divergence(p_Ln, q_Ln)[0]))

    assert np.mean(found) == pytest.approx(chance_divergence(n, k, (1000, 1000)) / ALIKE, rel=0.3)


def test_a_sample_of_the_same_traffic_is_healthy() -> None:
    weights = np.array([8.0, 4, 2, 1, 1, 0.5, 0.5, 0.25])
    reference = trained(drawn(0, n=8, k=4, tokens=8000, weights=weights), 4)
    found = judge(drawn(1, n=8, k=4, tokens=3000, weights=weights), k=4, trained=reference)
    assert found.enough
    assert found.flags == ()
    assert found.drift is not None
    assert found.drift < DRIFT / 10


def test_other_experts_than_in_training_are_drift_and_no_collapse() -> None:
    weights = np.array([8.0, 4, 2, 1, 1, 0.5, 0.5, 0.25])
    reference = trained(drawn(0, n=8, k=4, tokens=8000, weights=weights), 4)
    found = judge(drawn(1, n=8, k=4, tokens=3000, weights=weights[::-1]), k=4, trained=reference)
    assert found.flags == (RoutingFlag.DRIFTED,)


def always(k: int, n: int, tokens: int) -> Load:
    return {f"m{i}": [tokens] * k + [0] * (n - k) for i in range(3)}


@pytest.mark.parametrize("has_training", [False, True])
def test_the_same_k_experts_for_all_tokens_are_a_collapse(has_training: bool) -> None:
    reference = trained(always(4, 8, 8000), 4) if has_training else None
    found = judge(always(4, 8, 3000), k=4, trained=reference)
    assert found.flags == (RoutingFlag.COLLAPSED,)
    assert found.effective_experts == pytest.approx(4)
    assert found.entropy == pytest.approx(math.log(4) / math.log(8))
    assert found.dead_experts == 3 * 4
    assert found.modules[0].dead_experts == (4, 5, 6, 7)


def test_far_fewer_experts_than_in_training_are_a_collapse_before_k_is_reached() -> None:
    even = trained(drawn(0, n=16, k=2, tokens=8000), 2)
    weights = np.array([30.0] * 4 + [0.1] * 12)
    load = drawn(1, n=16, k=2, tokens=3000, weights=weights)
    found = judge(load, k=2, trained=even)
    assert found.effective_experts is not None
    assert 2 + 0.1 * 14 < found.effective_experts < 2 + COLLAPSE * 14
    assert RoutingFlag.COLLAPSED in found.flags
    assert judge(load, k=2).flags == ()


def test_nothing_is_judged_by_few_tokens() -> None:
    reference = trained(drawn(0, n=8, k=4, tokens=8000), 4)
    found = judge(always(4, 8, MIN_TOKENS - 1), k=4, trained=reference)
    assert not found.enough
    assert found.flags == ()
    assert (found.entropy, found.drift, found.dead_experts) == (None, None, 0)
    assert judge(always(4, 8, MIN_TOKENS), k=4, trained=reference).enough


def test_many_experts_need_more_tokens() -> None:
    assert tokens_needed(8, 4) == MIN_TOKENS
    assert tokens_needed(256, 2) == 12_800


def test_an_adapter_that_activates_all_its_experts_has_nothing_to_judge() -> None:
    found = judge({"m0": [9000, 9000], "m1": [9000, 9000]}, k=2)
    assert not found.enough
    assert found.flags == ()
    assert found.tokens == 9000


def test_modules_that_nobody_counted_are_left_out() -> None:
    load = {**drawn(0, n=4, k=2, tokens=3000), "late": [0, 0, 0, 0]}
    reference = trained({**drawn(1, n=4, k=2, tokens=8000), "late": [8000, 8000, 0, 0]}, 2)
    found = judge(load, k=2, trained=reference)
    assert found.enough
    assert found.flags == ()
    assert found.modules[-1].entropy is None
    assert found.modules[-1].activations == (0, 0, 0, 0)
    assert judge({}, k=1) == Routing(
        tokens=0,
        enough=False,
        entropy=None,
        effective_experts=None,
        dead_experts=0,
        drift=None,
        flags=(),
        modules=(),
    )
    assert judge({"m0": [0, 0]}, k=1).tokens == 0
