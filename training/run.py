"""One training run from its config to its folder.

output/
  adapter/               the trained adapter, servable (not for method softmax)
  state/                 training states to resume from
  metrics.jsonl  tensorboard/
  learning_curve.png  expert_load.png
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from remix_runtime.adapter.checkpoint.config import emit_config
from remix_runtime.base.model import end_token_ids
from remix_runtime.errors import CheckpointFormatError, ConfigError
from training.base import load_base, pick_device
from training.config import TrainConfig
from training.data import read_examples
from training.encoding import Example
from training.export import export_adapter
from training.log import METRICS, Row, RunLog
from training.plots import plot_expert_load, plot_learning_curve
from training.state import state_files
from training.trainer import Trainer

STATE, ADAPTER, BOARD = "state", "adapter", "tensorboard"
CURVE, LOAD = "learning_curve.png", "expert_load.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    rows: list[Row]
    """The rows of metrics.jsonl, one for each step."""
    adapter: Path | None
    """The trained adapter's folder; None for method softmax."""
    digest: str | None


def run_training(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Trains, logs, plots and writes the adapter.

    Raises `ConfigError` for an output folder that holds a run already, unless `resume` goes on
    from its newest state or `overwrite` deletes that run's files; `DataError`, `TrainingError`.
    """
    console = console or Console(quiet=True)
    output = config.output
    _require_free(output, resume=resume, overwrite=overwrite)
    _require_writable(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model, tokenizer = load_base(config.base, pick_device(config.device))
    examples: list[Example] = []
    held_out: list[Example] = []
    for path, into in ((config.data, examples), (config.eval_data, held_out)):
        if path is not None:
            rows, truncated = read_examples(
                path,
                tokenizer,
                max_length=config.max_length,
                too_long=config.too_long,
                end_ids=end_token_ids(model, tokenizer.eos_token_id),
            )
            into += rows
            if truncated:
                cut = f"{path}: {truncated} rows cut to {config.max_length} tokens"
                console.print(cut, markup=False)
    trainer = Trainer(config, model, examples, held_out)
    start = trainer.resume(output / STATE) if resume else 0
    if start > config.steps:
        raise ConfigError(
            f"steps: found {config.steps}, expected at least {start}, the step of the saved state"
        )
    if overwrite:  # nothing can be wrong with the new run's settings and data any more
        _clear(output)
    if start:
        console.print(f"going on from step {start} of {config.steps}")
    with RunLog(output, start=start, steps=config.steps, console=console) as log:
        trainer.run(state_folder=output / STATE, on_step=log.write)
    plot_learning_curve(log.rows, output / CURVE)
    if log.last is not None:
        plot_expert_load(log.rows, log.last.routing.load_Ln, output / LOAD)
    if config.method == "softmax":
        return RunResult(rows=log.rows, adapter=None, digest=None)
    digest = export_adapter(
        output / ADAPTER,
        config=config,
        model=model,
        layers=trainer.layers,
        examples=examples,
        rows=log.rows,
    )
    return RunResult(rows=log.rows, adapter=output / ADAPTER, digest=digest)


def _require_writable(config: TrainConfig) -> None:
    """Raises `ConfigError`, before training, for settings that no adapter folder can hold."""
    if config.method != "softmax":
        try:
            emit_config(config.adapter)
        except CheckpointFormatError as error:
            raise ConfigError(f"the settings make no valid adapter: {error}") from None


def _clear(output: Path) -> None:
    for name in (STATE, ADAPTER, BOARD):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in (METRICS, CURVE, LOAD):
        (output / name).unlink(missing_ok=True)


def _require_free(output: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ConfigError("found --resume and --overwrite, expected at most one of them")
    if resume or overwrite:
        return
    if state_files(output / STATE) or (output / ADAPTER).exists():
        raise ConfigError(
            f"output: {output} holds a run already; go on with --resume, "
            "start again with --overwrite, or name another folder"
        )
