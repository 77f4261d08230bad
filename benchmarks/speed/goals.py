"""The goals of the embedded engine's speed, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.rounds import Spread, ratio
from benchmarks.speed.measure import Metric, Results
from benchmarks.speed.plan import Case, Lane


@dataclass(frozen=True, slots=True)
class Goal:
    """`lane` must reach `at_least` times the tokens/s of `reference` on `case`."""

    case: Case
    goal: str
    lane: Lane
    reference: Lane
    metric: Metric
    at_least: float


@dataclass(frozen=True, slots=True)
class Verdict:
    goal: Goal
    reached: Spread | None
    """Ratio of each round; None where one of the two did not run."""

    @property
    def met(self) -> bool | None:
        return None if self.reached is None else self.reached.median >= self.goal.at_least

    def sentence(self) -> str:
        """ "met: 1.20" or "missed by 0.13 (16 %): 0.67"."""
        if self.reached is None:
            return "not measured"
        reached, asked = self.reached.median, self.goal.at_least
        if self.met:
            return f"met: {reached:.3f}"
        gap = asked - reached
        return f"missed by {gap:.3f} ({gap / asked:.1%} of the goal): {reached:.3f}"


def goals(grid: Iterable[Case]) -> list[Goal]:
    """All goals that the cases can answer."""
    return [Goal(case, *goal) for case in grid for goal in _goals_of(case)]


def _goals_of(case: Case) -> list[tuple[str, Lane, Lane, Metric, float]]:
    if case.prefill:
        return [
            ("4 adapters, prefill", Lane.MIXED, Lane.LOADED, "prefill", 0.85),
            ("adapters loaded, prefill", Lane.LOADED, Lane.REMIX, "prefill", 0.98),
            ("stored against float32, prefill", Lane.REMIX, Lane.FLOAT32, "prefill", 1.0),
            ("int8: 4 adapters, prefill", Lane.INT8_MIXED, Lane.INT8_LOADED, "prefill", 0.85),
        ]
    found: list[tuple[str, Lane, Lane, Metric, float]] = [
        ("ahead of generate", Lane.REMIX, Lane.GENERATE, "output", 1.0),
        ("ahead of vLLM CPU", Lane.REMIX, Lane.VLLM, "output", 1.0),
        ("ahead of llama.cpp BF16", Lane.REMIX, Lane.LLAMACPP_BF16, "output", 1.0),
        ("int8 level with llama.cpp Q8_0", Lane.INT8, Lane.LLAMACPP_Q8, "output", 1.0),
    ]
    if case.batch == 1:
        found += [
            ("stored against float32", Lane.REMIX, Lane.FLOAT32, "decode", 1.6),
            ("share of the roofline", Lane.REMIX, Lane.ROOFLINE, "decode", 0.8),
            ("float32: roofline", Lane.FLOAT32, Lane.ROOFLINE_FLOAT32, "decode", 0.8),
            ("int8: roofline", Lane.INT8, Lane.ROOFLINE_INT8, "decode", 0.8),
            ("level with llama.cpp F32", Lane.FLOAT32, Lane.LLAMACPP, "output", 1.0),
        ]
    if case.prompt == "short":
        found += [
            ("4 adapters, decode", Lane.MIXED, Lane.LOADED, "decode", 0.85),
            ("adapters loaded, output", Lane.LOADED, Lane.REMIX, "output", 0.98),
            ("int8: 4 adapters, decode", Lane.INT8_MIXED, Lane.INT8_LOADED, "decode", 0.85),
            ("int8: adapters loaded, output", Lane.INT8_LOADED, Lane.INT8, "output", 0.98),
        ]
    return found


def judge(wanted: Iterable[Goal], results: Results) -> list[Verdict]:
    """One verdict per goal, from the ratios within each round."""
    verdicts = []
    for goal in wanted:
        own, reference = (
            results.values(goal.case, lane, goal.metric) for lane in (goal.lane, goal.reference)
        )
        verdicts.append(Verdict(goal, ratio(own, reference)))
    return verdicts
