"""The goals of the embedded engine's speed, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.measure import Spread, ratio
from benchmarks.plan import Case, Lane
from benchmarks.speed import Results

Metric = Literal["output", "decode", "prefill"]


@dataclass(frozen=True, slots=True)
class Goal:
    """`lane` must reach `at_least` times the tokens/s of `reference` on `case`."""

    title: str
    case: Case
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
            found.append(
                Goal("4 adapters, prefill", case, Lane.MIXED, Lane.LOADED, "prefill", 0.85)
            )
            found.append(
                Goal("adapters loaded, prefill", case, Lane.LOADED, Lane.REMIX, "prefill", 0.98)
            )
            continue
        found.append(Goal("ahead of generate", case, Lane.REMIX, Lane.GENERATE, "output", 1.0))
        found.append(Goal("ahead of vLLM CPU", case, Lane.REMIX, Lane.VLLM, "output", 1.0))
        if case.batch == 1:
            found.append(
                Goal("share of the roofline", case, Lane.REMIX, Lane.ROOFLINE, "decode", 0.8)
            )
            found.append(
                Goal("level with llama.cpp F32", case, Lane.REMIX, Lane.LLAMACPP, "output", 1.0)
            )
        if case.prompt == "short":
            found.append(Goal("4 adapters, decode", case, Lane.MIXED, Lane.LOADED, "decode", 0.85))
            found.append(
                Goal("adapters loaded, output", case, Lane.LOADED, Lane.REMIX, "output", 0.98)
            )
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
