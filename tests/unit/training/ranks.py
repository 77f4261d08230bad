"""The processes of one run, started as a launcher does it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.forkserver import context
from tests.unit.training.killed import train_rank
from training.config import TrainConfig
from training.run import STATE
from training.state import state_files


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def recipe_of(config: TrainConfig) -> Path:
    """A file with the settings, beside the output folder."""
    recipe = config.output.with_suffix(".yaml")
    settings = config.model_dump(mode="json", exclude_defaults=True)
    recipe.write_text(yaml.safe_dump(settings))
    return recipe


@contextmanager
def started(
    count: int,
    config: TrainConfig,
    *,
    resume: bool = False,
    until: int = 0,
    target: Callable[..., None] = train_rank,
) -> Iterator[list[ForkServerProcess]]:
    """The processes of a run, which end with the context."""
    recipe, port = recipe_of(config), free_port()
    ranks = [
        context.Process(target=target, args=(str(recipe), rank, count, port, resume, until))
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


def train_with(
    count: int,
    config: TrainConfig,
    *,
    resume: bool = False,
    until: int = 0,
    target: Callable[..., None] = train_rank,
) -> None:
    """Runs `count` processes to their ends; the first dies after `until` steps."""
    with started(count, config, resume=resume, until=until, target=target) as ranks:
        ranks[0].join(240)
        assert ranks[0].exitcode == (-signal.SIGKILL if until else 0)
        if not until:
            for process in ranks[1:]:
                process.join(60)
                assert process.exitcode == 0


def end_of(config: TrainConfig) -> dict[str, Tensor]:
    return load_file(state_files(config.output / STATE)[-1])
