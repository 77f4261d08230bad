"""A run that is killed at a chosen point. Imported by a fork server, see `tests/forkserver.py`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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
