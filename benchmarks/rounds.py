"""Measuring in turns: a slow moment of the machine hits all sides, or one round, not one side.

The sides of a case run once per round, one after the other, beginning with another one each round,
and only then the next round begins. Ratios are taken within a round; their median counts. Standard
library only.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

Report = Callable[[str], None]
"""Takes one line about what happens now."""

C = TypeVar("C")
S = TypeVar("S")
T = TypeVar("T")


def run_rounds(
    cases: Mapping[C, Mapping[S, Callable[[int], T | None]]],
    *,
    rounds: int | None = None,
    warm_up: int = 0,
    seconds: float = math.inf,
    report: Report = lambda line: None,
) -> dict[C, dict[S, dict[int, T]]]:
    """What every side of every case gave, by round; a side is called with the number of its round.

    Rounds of the warm-up have negative numbers and are not kept, nor is a None. A case whose next
    round would not end within `seconds` is left out, but round 0 is always complete. Without
    `rounds` there are as many as fit.
    """
    found: dict[C, dict[S, dict[int, T]]] = {case: {} for case in cases}
    end = time.monotonic() + seconds
    cost = dict.fromkeys(cases, 0.0)
    for number in itertools.count(-warm_up) if rounds is None else range(-warm_up, rounds):
        left_out = 0
        for case, sides in cases.items():
            begin = time.monotonic()
            if number > 0 and begin + cost[case] > end:
                report(f"round {number + 1}: {case} left out, {end - begin:.0f} s are left")
                left_out += 1
                continue
            for side in rotated(list(sides), number):
                value = sides[side](number)
                if number >= 0 and value is not None:
                    found[case].setdefault(side, {})[number] = value
            cost[case] = time.monotonic() - begin
        if left_out == len(cases):
            break
    return found


def rotated(sides: Sequence[S], number: int) -> Iterator[S]:
    """The sides in turn, beginning one further each round, so that none is always first."""
    start = number % len(sides)
    yield from (*sides[start:], *sides[:start])


def from_thread(
    loop: asyncio.AbstractEventLoop, run: Callable[[int], Coroutine[Any, Any, T]]
) -> Callable[[int], T]:
    """A side that runs on an event loop, for rounds that run in another thread."""
    return lambda number: asyncio.run_coroutine_threadsafe(run(number), loop).result()


def fastest(
    calls: Sequence[Callable[[], object]], *, rounds: int | None = None, seconds: float = math.inf
) -> list[float]:
    """Seconds of each one's fastest call, as other load only slows down; they take turns."""

    def timed(call: Callable[[], object], number: int) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    sides = {i: partial(timed, call) for i, call in enumerate(calls)}
    found = run_rounds({"": sides}, rounds=rounds, warm_up=1, seconds=seconds)[""]
    return [min(found[i].values()) for i in sides]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and largest of the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def show(self, digits: int = 1) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """`values` must not be empty."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(values: Mapping[int, float], references: Mapping[int, float]) -> Spread | None:
    """Ratios within each round, so that a machine that slows down between rounds cancels.

    Both are keyed by round; None where they share none.
    """
    common = sorted(values.keys() & references.keys())
    return spread([values[i] / references[i] for i in common]) if common else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
