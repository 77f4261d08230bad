"""The gate: is the new adapter better than what it replaces, and than the base, by a margin that is
no chance?

The same rows are scored by all, and compared row by row: rows differ from each other much more than
two adapters differ on one row. What must reach the margin is not the mean of the differences but
the end of its one-sided 95 % interval (Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_ROWS = 8
"""Rows below which the interval says little."""
MARGIN = 0.01
"""Nats per completion token."""
_Z = 1.6448536269514722


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The new adapter beside another model on the same rows. Losses are means over rows, in nats
    per token."""

    than: str
    loss: float
    """The other model's."""
    new_loss: float
    standard_error: float
    """Of the mean difference."""
    certain: float
    """By how much the new one is better at least, with 95 % certainty; negative where it may be
    worse."""
    margin: float

    @property
    def passes(self) -> bool:
        return self.certain >= self.margin


def compare(
    than: str, new: Sequence[float], other: Sequence[float], *, margin: float
) -> Comparison:
    """Compares losses of the same rows. A loss that is no number passes no gate."""
    assert len(new) == len(other) >= 2, "the same rows, and several"
    better = [theirs - ours for ours, theirs in zip(new, other, strict=True)]
    count = len(better)
    mean = sum(better) / count
    variance = sum((each - mean) ** 2 for each in better) / (count - 1)
    error = math.sqrt(variance / count)
    certain = mean - _t95(count - 1) * error
    return Comparison(
        than=than,
        loss=sum(other) / count,
        new_loss=sum(new) / count,
        standard_error=error,
        certain=certain if math.isfinite(certain) else -math.inf,
        margin=margin,
    )


def _t95(degrees: int) -> float:
    """The 95th percentile of Student's t, by the expansion around the normal distribution's
    (Abramowitz and Stegun, 26.7.5): within 0.3 % from 5 degrees on."""
    z, v = _Z, degrees
    terms = (
        z,
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return sum(terms)
