"""Training computes what it computed when the golden trajectories were stored."""

from __future__ import annotations

import json

import pytest
import torch

from tests.golden.trajectory import COLUMNS, METHODS, STEPS, STORED, run

TOLERANCE = 2e-3
"""Relative. Other numbers of threads differ by about 1e-5; a wrong factor by far more."""


@pytest.mark.parametrize("method", METHODS)
def test_the_trajectory_is_the_stored_one(method: str) -> None:
    stored = torch.tensor(json.loads(STORED.read_text())[method])
    assert stored.shape == (STEPS, len(COLUMNS))
    torch.testing.assert_close(torch.tensor(run(method)), stored, rtol=TOLERANCE, atol=1e-5)


def test_the_methods_have_different_trajectories() -> None:
    stored = json.loads(STORED.read_text())
    assert stored.keys() == METHODS.keys()
    assert len({rows[-1][0] for rows in stored.values()}) == len(METHODS)
