"""Arrival times to rates, rounds to ratios."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from benchmarks.agreement import agreement, first_difference
from benchmarks.rounds import fastest, ratio, run_rounds, spread
from benchmarks.speed.measure import rates
from benchmarks.speed.systems.protocol import Run, Workload


def _workload(prompt_lengths: list[int], new_tokens: int) -> Workload:
    prompts = [[1] * length for length in prompt_lengths]
    return Workload(prompts, new_tokens, [None] * len(prompts))


def test_rates_of_requests_that_start_one_after_the_other() -> None:
    run = Run(arrivals=[[1.0, 2.0, 3.0], [2.5, 3.5, 4.5]], tokens=[[], []])
    found = rates(_workload([10, 15], 3), run)
    assert found.output == pytest.approx(6 / 4.5)
    # Both have begun at 2.5; three tokens come in the two seconds after it.
    assert found.decode == pytest.approx(3 / 2.0)
    assert found.prefill == pytest.approx(25 / 2.5)


def test_prefill_alone_has_no_decode_rate() -> None:
    found = rates(_workload([300], 1), Run(arrivals=[[0.5]], tokens=[[7]]))
    assert found.decode is None
    assert found.prefill == pytest.approx(600)


@pytest.mark.parametrize("arrivals", [[[1.0, 2.0], [1.0]], [[1.0], [1.0]], [[], []]])
def test_a_run_with_missing_tokens_is_no_measurement(arrivals: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="expected 2 tokens per request"):
        rates(_workload([4, 4], 2), Run(arrivals=arrivals, tokens=[[], []]))


def test_spread_is_median_and_extremes() -> None:
    found = spread([3.0, 9.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.rounds) == (2.5, 1.0, 9.0, 4)


def test_ratio_pairs_rounds_so_that_a_slow_round_cancels() -> None:
    ours = {0: 100.0, 1: 10.0, 2: 100.0, 3: 5.0}
    theirs = {0: 50.0, 1: 5.0, 2: 50.0}
    found = ratio(ours, theirs)
    assert found is not None
    assert (found.median, found.low, found.high, found.rounds) == (2.0, 2.0, 2.0, 3)
    assert ratio({0: 1.0}, {1: 1.0}) is None


def test_agreement_is_the_share_before_the_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert first_difference("abc", "abcd") == 3
    assert agreement([[1, 2, 3, 4], [9, 2, 3, 4]], [[1, 2, 0, 4], [1, 2, 3, 4]]) == 0.25
    assert agreement(["same"], ["same"]) == 1.0


def test_sides_take_turns_and_only_what_was_measured_is_kept() -> None:
    order: list[tuple[str, int]] = []

    def side(name: str) -> Callable[[int], int | None]:
        def run(number: int) -> int | None:
            order.append((name, number))
            return None if (name, number) == ("b", 1) else 10 * number

        return run

    found = run_rounds({"case": {"a": side("a"), "b": side("b")}}, rounds=2, warm_up=1)
    assert found == {"case": {"a": {0: 0, 1: 10}, "b": {0: 0}}}
    assert order == [("b", -1), ("a", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]


def test_the_fastest_call_counts_within_a_time() -> None:
    quick, slow = fastest([lambda: None, lambda: time.sleep(0.01)], seconds=0.05)
    assert 0 <= quick < 0.01 <= slow
