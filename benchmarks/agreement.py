"""How far two outputs are the same: after the first difference the rest follows from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def first_difference(output: Sequence[object], reference: Sequence[object]) -> int:
    """How many elements are equal before the first that is not."""
    pairs = zip(output, reference, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(output), len(reference)))


def agreement(outputs: Sequence[Sequence[object]], references: Sequence[Sequence[object]]) -> float:
    """Mean share of each output that is equal to its reference up to the first difference."""
    return statistics.mean(
        first_difference(output, reference) / max(len(reference), 1)
        for output, reference in zip(outputs, references, strict=True)
    )
