"""The classifier that looks for what another tenant has asked."""

from __future__ import annotations

import random

import pytest

from benchmarks.tenants.timing import MOST, Probe, share_right


def probes(count: int, faster: float, seed: int) -> list[Probe]:
    """Noisy times; what was asked before takes `faster` times the rest."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        asked = rng.random() < 0.5
        found.append((rng.gauss(1.0, 0.1) * (faster if asked else 1.0), asked))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_times_that_tell_nothing(seed: int) -> None:
    assert share_right(probes(2000, 1.0, seed)) <= MOST


@pytest.mark.parametrize("faster", [0.7, 1.3])
def test_times_that_tell(faster: float) -> None:
    assert share_right(probes(2000, faster, 0)) > 0.85
