"""Several processes are one run: the steps of one process with as many times the passes."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from remix_runtime.errors import TrainingError
from tests.unit.training.conftest import ROWS, MakeConfig, write_rows
from tests.unit.training.ranks import end_of, started, train_with
from training.log import read_metrics
from training.ranks import ALONE, join_ranks
from training.run import STATE, run_training
from training.state import state_files

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

KILLS = 50
UPPER = ["layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "lora"}, {"target_modules": UPPER, "cache_trunk": True}],
    ids=["remix", "lora", "trunk"],
)
def test_two_processes_are_one_with_twice_the_passes(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    held_out = str(write_rows(tmp_path / "held_out.jsonl", ROWS[:5]))
    settings = {"eval_data": held_out, "eval_every": 3, **settings}
    two = make_config(output=str(tmp_path / "two"), **settings)
    one = make_config(output=str(tmp_path / "one"), gradient_accumulation=2, **settings)
    train_with(2, two)
    plain = run_training(one)
    rows = read_metrics(two.output)
    assert len(rows) == len(plain.rows) == 6
    for found, expected in zip(rows, plain.rows, strict=True):
        for key in expected.keys() - {"tokens_per_second"}:
            assert found[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key
    ends = end_of(two), end_of(one)
    for key, value in ends[1].items():
        if key.startswith("weight/"):
            torch.testing.assert_close(ends[0][key], value, rtol=1e-3, atol=1e-5, msg=key)
    assert (two.output / "adapter" / "adapter_config.json").is_file()
    assert not (two.output / "trunk").exists()


def test_killed_and_resumed_it_ends_with_the_same_bits(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    settings = {"steps": 10, "checkpoint_every": 3}
    killed = make_config(output=str(tmp_path / "killed"), **settings)
    whole = make_config(output=str(tmp_path / "whole"), **settings)
    train_with(2, whole)
    train_with(2, killed, until=random.randrange(4, 10))
    assert not (killed.output / "adapter").exists()
    train_with(2, killed, resume=True)
    ends = end_of(killed), end_of(whole)
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], value) for key, value in ends[1].items())
    with pytest.raises(TrainingError, match="was saved with processes = 2, found 1"):
        run_training(killed.model_copy(update={"steps": 12}), resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"target_modules": UPPER, "cache_trunk": True}])
def test_killed_at_any_time_again_and_again_it_ends_with_the_same_bits(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {"steps": 400, "checkpoint_every": 2, **settings}
    killed = make_config(output=str(tmp_path / "killed"), **settings)
    whole = make_config(output=str(tmp_path / "whole"), **settings)
    train_with(2, whole)
    steps = []
    for kill in range(KILLS):
        with started(2, killed, resume=kill > 0) as ranks:
            time.sleep(random.uniform(0.1, 4))
            random.choice(ranks).kill()
            time.sleep(random.choice([0, 0.1]))  # the other may notice, or not
        states = state_files(killed.output / STATE)
        steps.append(int(states[-1].stem.removeprefix("state-")) if states else 0)
    assert steps == sorted(steps)
    print(f"steps at the kills: {steps}")
    train_with(2, killed, resume=True)
    ends = end_of(killed), end_of(whole)
    assert all(torch.equal(ends[0][key], value) for key, value in ends[1].items())
    rows = read_metrics(killed.output)
    assert [row["step"] for row in rows] == list(range(1, 401))


def test_without_a_launcher_a_run_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_ranks(torch.device("cpu")) is ALONE
    assert [ALONE.share(index) for index in range(3)] == [0, 1, 2]
    value = torch.ones(2)
    ALONE.average([value])
    assert value.tolist() == [1, 1]
