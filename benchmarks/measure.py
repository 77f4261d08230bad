"""From arrival times of tokens to rates, and from rates of several rounds to one number."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.systems.protocol import Run, Workload


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second of one run."""

    output: float
    """All output tokens over the whole time, prefill included."""
    decode: float | None
    """Tokens after the moment when every request had its first; None if there are none."""
    prefill: float
    """Prompt tokens until the moment when every request had its first output token."""


def rates(workload: Workload, run: Run) -> Rates:
    """Raises `ValueError` where a request did not give exactly its number of tokens."""
    counts = {len(row) for row in run.arrivals}
    if counts != {workload.new_tokens}:
        raise ValueError(f"expected {workload.new_tokens} tokens per request, found {counts}")
    times = [t for row in run.arrivals for t in row]
    end = max(times)
    all_started = max(row[0] for row in run.arrivals)
    later = sum(t > all_started for t in times)
    return Rates(
        output=len(times) / end,
        decode=later / (end - all_started) if later else None,
        prefill=sum(len(p) for p in workload.prompts) / all_started,
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and largest of the rounds."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """`values` must not be empty."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(values: dict[int, float], references: dict[int, float]) -> Spread | None:
    """Ratios within each round, so that a machine that slows down between rounds cancels.

    Both are keyed by round; None where they share none.
    """
    common = sorted(values.keys() & references.keys())
    return spread([values[i] / references[i] for i in common]) if common else None


def agreement(outputs: Sequence[Sequence[object]], references: Sequence[Sequence[object]]) -> float:
    """Mean share of each output that is equal to its reference up to the first difference."""
    shares = []
    for output, reference in zip(outputs, references, strict=True):
        shares.append(first_difference(output, reference) / max(len(reference), 1))
    return statistics.mean(shares)


def first_difference(output: Sequence[object], reference: Sequence[object]) -> int:
    """How many elements are equal before the first that is not."""
    pairs = zip(output, reference, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(output), len(reference)))
