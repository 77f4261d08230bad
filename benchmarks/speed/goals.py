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
    title: str
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
        if self.met:
            return f"met: {self.reached.median:.3f}"
        gap = self.goal.at_least - self.reached.median
        return (
            f"missed by {gap:.3f} ({gap / self.goal.at_least:.1%} of the goal): "
            f"{self.reached.median:.3f}"
        )


def goals(grid: Iterable[Case]) -> list[Goal]:
    """All goals that the cases can answer."""
    found: list[Goal] = []
    for case in grid:
        if case.prefill:
            found += [
                Goal(case, "4 adapters, prefill", Lane.MIXED, Lane.LOADED, "prefill", 0.85),
                Goal(case, "adapters loaded, prefill", Lane.LOADED, Lane.REMIX, "prefill", 0.98),
            ]
            continue
        found += [
            Goal(case, "ahead of generate", Lane.REMIX, Lane.GENERATE, "output", 1.0),
            Goal(case, "ahead of vLLM CPU", Lane.REMIX, Lane.VLLM, "output", 1.0),
        ]
        if case.batch == 1:
            found += [
                Goal(case, "share of the roofline", Lane.REMIX, Lane.ROOFLINE, "decode", 0.8),
                Goal(case, "level with llama.cpp F32", Lane.REMIX, Lane.LLAMACPP, "output", 1.0),
            ]
        if case.prompt == "short":
            found += [
                Goal(case, "4 adapters, decode", Lane.MIXED, Lane.LOADED, "decode", 0.85),
                Goal(case, "adapters loaded, output", Lane.LOADED, Lane.REMIX, "output", 0.98),
            ]
    return found


def judge(wanted: Iterable[Goal], results: Results) -> list[Verdict]:
    """One verdict per goal, from the ratios within each round."""
    return [
        Verdict(
            goal,
            ratio(
                results.values(goal.case, goal.lane, goal.metric),
                results.values(goal.case, goal.reference, goal.metric),
            ),
        )
        for goal in wanted
    ]
