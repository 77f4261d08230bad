"""A run that is killed at a chosen point. Imported by a fork server, see `tests/forkserver.py`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import training.run
import training.state
import training.trainer
from remix_runtime.adapter.checkpoint import writer
from training.config import load_config
from training.log import RunLog
from training.run import run_training

AFTER: dict[str, tuple[Any, str]] = {
    "a step's row is written": (RunLog, "write"),
    "a state is half written": (training.state, "save_file"),
    "a state is saved": (training.trainer, "save_state"),
    "a file of the adapter is written": (writer, "_write_synced"),
    "the adapter, or the one before it, is renamed": (Path, "rename"),
}


def train_until(recipe: str, point: str, times: int) -> None:
    """Trains, and dies when `point` was passed so many times."""
    torch.set_num_threads(1)
    owner, name = AFTER[point]
    setattr(owner, name, _fatal(getattr(owner, name), times))
    run_training(load_config(Path(recipe)), resume=True)


def train_rank(recipe: str, rank: int, count: int, port: int, resume: bool, until: int = 0) -> None:
    """One of `count` processes of a run, as a launcher starts them. The first dies after `until`
    steps, if that is not 0."""
    be_rank(rank, count, port)
    for plot in ("plot_learning_curve", "plot_expert_load"):  # longer than a tiny run
        setattr(training.run, plot, lambda *_: None)
    if rank == 0 and until:
        RunLog.write = _fatal(RunLog.write, until)  # type: ignore[method-assign]
    run_training(load_config(Path(recipe)), resume=resume)


def be_rank(rank: int, count: int, port: int) -> None:
    """What a launcher tells a process."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _fatal(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    passed = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        result = function(*args, **kwargs)
        passed += 1
        if passed == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call
