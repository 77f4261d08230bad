"""Several processes are one run: the steps of one process with as many times the passes."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from remix_runtime.errors import TrainingError
from tests.forkserver import context
from tests.unit.training.conftest import ROWS, MakeConfig, write_rows
from tests.unit.training.killed import train_rank
from training.config import TrainConfig
from training.log import read_metrics
from training.ranks import ALONE, join_ranks
from training.run import STATE, run_training
from training.state import state_files

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

KILLS = 50
UPPER = ["layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def started(
    count: int, config: TrainConfig, *, resume: bool = False, until: int = 0
) -> Iterator[list[ForkServerProcess]]:
    """The processes of a run, which end with the context."""
    recipe = config.output.with_suffix(".yaml")
    settings = config.model_dump(mode="json", exclude_defaults=True)
    recipe.write_text(yaml.safe_dump(settings))
    port = free_port()
    ranks = [
        context.Process(target=train_rank, args=(str(recipe), rank, count, port, resume, until))
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.join()


def train_with(count: int, config: TrainConfig, *, resume: bool = False, until: int = 0) -> None:
    """Runs `count` processes to their ends; the first dies after `until` steps."""
    with started(count, config, resume=resume, until=until) as ranks:
        ranks[0].join(240)
        assert ranks[0].exitcode == (-signal.SIGKILL if until else 0)
        if not until:
            for process in ranks[1:]:
                process.join(60)
                assert process.exitcode == 0


def end_of(config: TrainConfig) -> dict[str, Tensor]:
    return load_file(state_files(config.output / STATE)[-1])


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
