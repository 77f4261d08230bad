"""What follows from the figures of a canary, and how often that is wrong."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.live.canary.figures import Arm, ArmFigures, Figures, Times
from server.live.canary.verdict import Verdict, judge, log_stake
from server.tenancy.canary_rows import CanaryRules

FOREVER = CanaryRules(bake_seconds=0, bake_requests=10**9)
"""Never promotes."""
FALSE_ROLLBACKS = 0.01
"""The most of canaries as good as the live adapter that may be rolled back: of 2,000 requests each,
looked at after every one."""


def rolled_back(
    seed: int,
    *,
    share: float = 0.1,
    live_errors: float = 0.0,
    canary_errors: float = 0.0,
    slower: float = 1.0,
    spread: float = 0.5,
    requests: int = 2000,
) -> tuple[int, str] | None:
    """Of the canary's requests, after how many it was rolled back, and why; None where it was not.
    Times are log-normal."""
    draw, figures = random.Random(seed), Figures()
    for _ in range(requests):
        is_canary = draw.random() < share
        arm = figures.of(Arm.CANARY if is_canary else Arm.LIVE)
        arm.requests += 1
        if draw.random() < (canary_errors if is_canary else live_errors):
            arm.failures += 1
        else:
            ratio = slower if is_canary else 1.0
            arm.first.add(0.2 * ratio * math.exp(draw.gauss(0, spread)))
            arm.token.add(0.03 * ratio * math.exp(draw.gauss(0, spread / 2)))
        if is_canary:
            judgement = judge(FOREVER, figures, share=share, age_seconds=1)
            if judgement.verdict is Verdict.ROLL_BACK:
                return arm.requests, judgement.reason
    return None


GOOD: list[dict[str, float]] = [
    {},
    {"live_errors": 0.05, "canary_errors": 0.05},
    {"share": 0.02, "live_errors": 0.01, "canary_errors": 0.01},
    {"spread": 1.5},
    {"slower": 1.25},
]


def test_a_canary_that_is_as_good_is_rolled_back_in_one_of_a_hundred_runs_at_most() -> None:
    runs = [rolled_back(seed, **kind) for kind in GOOD for seed in range(8)]
    assert sum(run is not None for run in runs) <= FALSE_ROLLBACKS * len(runs)


@pytest.mark.slow
def test_the_same_in_two_thousand_runs() -> None:
    runs = [rolled_back(seed, **kind) for kind in GOOD for seed in range(400)]
    assert sum(run is not None for run in runs) <= FALSE_ROLLBACKS * len(runs)


@pytest.mark.parametrize(
    ("kind", "most", "why"),
    [
        ({"canary_errors": 1.0}, 4, "failed"),
        ({"canary_errors": 0.2}, 150, "failed"),
        ({"slower": 3.0}, 60, "took longer"),
    ],
)
def test_a_canary_that_is_worse_is_found_out_after_few_requests(
    kind: dict[str, float], most: int, why: str
) -> None:
    for seed in range(5):
        run = rolled_back(seed, **kind)
        assert run is not None
        assert run[0] <= most
        assert why in run[1]


def test_without_a_live_arm_errors_and_stated_seconds_count() -> None:
    rules = CanaryRules(max_first_token_seconds=1.0)
    figures = Figures()
    for _ in range(100):
        figures.canary.requests += 1
        figures.canary.first.add(3.0)
    judgement = judge(rules, figures, share=1.0, age_seconds=10)
    assert judgement.verdict is Verdict.ROLL_BACK
    assert "first token: 100 of 100" in judgement.reason
    assert judge(CanaryRules(), figures, share=1.0, age_seconds=10).verdict is Verdict.GO_ON


def test_an_error_rate_that_both_arms_share_is_no_reason() -> None:
    figures = Figures(ArmFigures(100, 30), ArmFigures(900, 270))
    assert judge(CanaryRules(), figures, share=0.1, age_seconds=1).verdict is Verdict.GO_ON


def test_it_is_promoted_after_its_time_and_its_requests_and_not_before() -> None:
    rules = CanaryRules(bake_seconds=60, bake_requests=50, give_up_seconds=600)
    few, enough = Figures(ArmFigures(49), ArmFigures(450)), Figures(ArmFigures(50), ArmFigures(450))
    for figures, age, verdict, reason in (
        (few, 599.0, Verdict.GO_ON, "49 of 50 requests"),
        (enough, 59.0, Verdict.GO_ON, "59 of 60 s"),
        (enough, 60.0, Verdict.PROMOTE, "within the bounds"),
        (few, 600.0, Verdict.ROLL_BACK, "no decision after 600 s: 49 of 50 requests"),
    ):
        judgement = judge(rules, figures, share=0.1, age_seconds=age)
        assert judgement.verdict is verdict
        assert reason in judgement.reason


times = st.lists(st.floats(0.001, 20.0), max_size=60)


def arm(requests: int, failures: int, seconds: list[float]) -> ArmFigures:
    made = ArmFigures(requests, min(failures, requests))
    for each in seconds:
        made.first.add(each)
    return made


@given(
    canary=st.tuples(st.integers(1, 500), st.integers(0, 12), times),
    live=st.tuples(st.integers(0, 500), st.integers(0, 20), times),
    age=st.floats(0, 20),
)
def test_never_promoted_outside_of_the_bounds(
    canary: tuple[int, int, list[float]], live: tuple[int, int, list[float]], age: float
) -> None:
    rules = CanaryRules(bake_seconds=5, bake_requests=20, give_up_seconds=15)
    figures = Figures(arm(*canary), arm(*live))
    judgement = judge(rules, figures, share=0.5, age_seconds=age)
    if judgement.verdict is not Verdict.PROMOTE:
        return
    assert age >= rules.bake_seconds
    assert figures.canary.requests >= rules.bake_requests
    usual = figures.live.failures / max(figures.live.requests, 20)
    assert figures.canary.failures / figures.canary.requests <= usual + rules.max_extra_errors
    if figures.canary.first.count:
        median, of_live = figures.canary.first.quantile(0.5), figures.live.first.quantile(0.5)
        assert median is not None
        assert of_live is not None
        # Times are known to a bucket, an eighth of a doubling.
        assert median <= max(1.5 * of_live, of_live + 0.02) * 2 ** (1 / 8)


@given(st.integers(1, 300), st.floats(0.001, 0.9))
def test_a_stake_grows_with_what_is_bad_and_never_with_what_is_good(
    total: int, rate: float
) -> None:
    stakes = [log_stake(bad, total, rate) for bad in range(total + 1)]
    assert stakes == sorted(stakes)
    assert log_stake(0, total, rate) <= 0


def test_no_error_may_be_one_too_many_where_none_is_allowed() -> None:
    rules = CanaryRules(max_extra_errors=0.0)
    figures = Figures(ArmFigures(1000, 1), ArmFigures(1000, 0))
    assert judge(rules, figures, share=0.5, age_seconds=1e4).verdict is not Verdict.PROMOTE


@given(st.lists(st.floats(0.0001, 10000), min_size=1), st.lists(st.floats(0.0001, 10000)))
def test_times_of_two_servers_add_up(here: list[float], there: list[float]) -> None:
    def told(seconds: list[float]) -> Times:
        made = Times()
        for each in seconds:
            made.add(each)
        return made

    both = told(here + there)
    assert told(here) + told(there) == both
    assert Times(dict(map(tuple, both.as_json()))) == both  # type: ignore[arg-type]
    median = both.quantile(0.5)
    assert median is not None
    ordered = sorted(here + there)
    exact = ordered[(len(ordered) - 1) // 2]
    assert median == pytest.approx(exact, rel=0.1) or exact < 0.0005 or exact > 8000
