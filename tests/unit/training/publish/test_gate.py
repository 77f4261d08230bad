"""The gate lets a better adapter through and no chance."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from remix_runtime.base.fingerprint import fingerprint
from tests.models import save_tiny_base
from training.publish.gate import _t95, compare


def losses(seed: int, better: float, rows: int = 40) -> tuple[list[float], list[float]]:
    """Of the new adapter and of the other: rows differ by far more than the two."""
    draw = random.Random(seed)
    other = [draw.gauss(3.0, 1.0) for _ in range(rows)]
    return [loss - better + draw.gauss(0, 0.1) for loss in other], other


def test_a_better_one_passes_though_rows_differ_much_more_than_the_two() -> None:
    new, other = losses(0, better=0.1)
    found = compare("live", new, other, margin=0.01)
    assert found.passes
    assert found.loss - found.new_loss == pytest.approx(0.1, abs=0.05)
    assert found.certain < found.loss - found.new_loss


def test_the_same_one_passes_by_chance_in_one_of_twenty_trials_at_most() -> None:
    trials = [compare("live", *losses(seed, better=0.0), margin=0.0).passes for seed in range(2000)]
    assert 0.03 < sum(trials) / len(trials) < 0.07
    with_margin = [compare("live", *losses(s, better=0.0), margin=0.01).passes for s in range(2000)]
    assert sum(with_margin) < sum(trials) / 2


def test_what_is_better_by_less_than_the_margin_does_not_pass() -> None:
    assert not compare("live", [1.0] * 10, [1.02] * 10, margin=0.03).passes
    assert compare("live", [1.0] * 10, [1.04] * 10, margin=0.03).passes


def test_a_loss_that_is_no_number_does_not_pass() -> None:
    assert not compare("live", [float("nan")] * 10, [1.0] * 10, margin=0.0).passes
    assert not compare("live", [1.0] * 9 + [float("inf")], [2.0] * 10, margin=0.0).passes


@pytest.mark.parametrize(("degrees", "known"), [(7, 1.8946), (10, 1.8125), (30, 1.6973)])
def test_student_s_t(degrees: int, known: float) -> None:
    assert _t95(degrees) == pytest.approx(known, rel=0.003)


def test_a_base_is_known_by_its_weights_in_however_many_files(tmp_path: Path) -> None:
    whole = save_tiny_base(tmp_path / "whole")
    print_of = fingerprint(whole)
    weights = load_file(whole / "model.safetensors")
    parts = tmp_path / "parts"
    parts.mkdir()
    names = sorted(weights)
    for number, some in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in some}, parts / f"model-{number}.safetensors")
    assert fingerprint(parts) == print_of is not None
    assert fingerprint(save_tiny_base(tmp_path / "other", seed=1)) != print_of
    one = save_tiny_base(tmp_path / "type", dtype=torch.bfloat16)
    assert fingerprint(one) != print_of
    (parts / "model-0.safetensors").write_bytes(b"\xff" * 100)
    assert fingerprint(parts) is None
    assert fingerprint(tmp_path) is None
