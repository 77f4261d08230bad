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

from remix_runtime.adapter.checkpoint import tidy_place
from remix_runtime.adapter.checkpoint.config import emit_config
from remix_runtime.base.model import end_token_ids
from remix_runtime.errors import CheckpointFormatError, ConfigError
from training.base import load_base, pick_device, row_limit
from training.claim import claimed
from training.config import TrainConfig
from training.data import Rows, Sequences
from training.export import export_adapter
from training.identity import base_contents
from training.jsonl import JsonRows
from training.log import METRICS, Row, RunLog
from training.plots import plot_expert_load, plot_learning_curve
from training.progress import stage
from training.reading import Reading
from training.state import UNFINISHED, state_files
from training.trainer import StepReport, Trainer

STATE, ADAPTER, BOARD = "state", "adapter", "tensorboard"
CURVE, LOAD = "learning_curve.png", "expert_load.png"
MAX_LENGTH = 512
"""Tokens of a row where the settings say nothing."""


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

    Raises `ConfigError` for an output folder that another run writes to, or that holds a run
    already, unless `resume` goes on from its newest state or `overwrite` deletes that run's files;
    `DataError`, `TrainingError`.
    """
    console = console or Console(quiet=True)
    if resume and overwrite:
        raise ConfigError("found --resume and --overwrite, expected at most one of them")
    _require_writable(config)
    with claimed(config.output):
        if not (resume or overwrite):
            _require_free(config.output)
        _tidy(config.output)
        trainer, reading = _prepare(config, console)
        start = trainer.resume(config.output / STATE) if resume else 0
        if start > config.steps:
            raise ConfigError(
                f"steps: found {config.steps}, expected at least {start}, the step of the saved "
                "state"
            )
        reading.begin()
        if overwrite:  # the new run can begin
            _clear(config.output)
        return _train(trainer, reading, start, console)


def _prepare(config: TrainConfig, console: Console) -> tuple[Trainer, Reading]:
    """Opens what the run is made from: its rows, before the slow base, and the base."""
    files = {"data": config.data}
    if config.eval_data is not None:
        files["eval_data"] = config.eval_data
    opened = {}
    for name, path in files.items():
        with stage(console, f"opening {path}") as move:
            opened[name] = JsonRows(path, move=move)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with stage(console, f"loading the base {config.base}"):
        model, tokenizer = load_base(
            config.base,
            pick_device(config.device),
            chat_template=config.defaults.chat_template,
        )
    limit = row_limit(model.config, config.max_length, default=MAX_LENGTH)
    ends = end_token_ids(model, tokenizer.eos_token_id)
    with stage(console, "hashing the base") as move:
        contents = {**base_contents(config.base, move=move), "base end tokens": str(sorted(ends))}
    rows = {
        name: Rows(file, tokenizer, max_length=limit, too_long=config.too_long, end_ids=ends)
        for name, file in opened.items()
    }
    trainer = Trainer(
        config.model_copy(update={"max_length": limit}),
        model,
        rows["data"],
        Sequences(rows["eval_data"]) if "eval_data" in rows else (),
        contents={**contents, **{name: file.digest for name, file in opened.items()}},
    )
    return trainer, Reading(list(rows.values()), console)


def _train(trainer: Trainer, reading: Reading, start: int, console: Console) -> RunResult:
    """From the step `start` to the adapter."""
    config, output = trainer.config, trainer.config.output
    begins = f"going on from step {start}" if start else "training begins"
    console.print(f"{begins}: {config.steps} steps, {len(trainer.rows)} rows")
    with RunLog(output, start=start, steps=config.steps, console=console) as log:

        def after_step(report: StepReport) -> None:
            log.write(report)
            reading.go_on(seconds=report.seconds)  # at most half of the time goes into it

        trainer.run(state_folder=output / STATE, on_step=after_step)
    reading.finish()
    with stage(console, f"writing {output}"):
        plot_learning_curve(log.rows, output / CURVE)
        if log.last is not None:
            plot_expert_load(log.rows, log.last.routing.load_Ln, output / LOAD)
        if config.method == "softmax":
            return RunResult(rows=log.rows, adapter=None, digest=None)
        digest = export_adapter(
            output / ADAPTER,
            config=config,
            model=trainer.model,
            layers=trainer.layers,
            rows=trainer.rows,
            log=log.rows,
        )
    return RunResult(rows=log.rows, adapter=output / ADAPTER, digest=digest)


def _require_writable(config: TrainConfig) -> None:
    """Raises `ConfigError`, before training, for settings that no adapter folder can hold."""
    if config.method != "softmax":
        try:
            emit_config(config.adapter)
        except CheckpointFormatError as error:
            raise ConfigError(f"the settings make no valid adapter: {error}") from None


def _require_free(output: Path) -> None:
    if state_files(output / STATE) or (output / ADAPTER).exists():
        raise ConfigError(
            f"output: {output} holds a run already; go on with --resume, "
            "start again with --overwrite, or name another folder"
        )


def _tidy(output: Path) -> None:
    """Removes what a killed run was writing."""
    for folder in (output, output / STATE):
        for unfinished in folder.glob(f"*{UNFINISHED}"):
            unfinished.unlink()
    tidy_place(output / ADAPTER)


def _clear(output: Path) -> None:
    for name in (STATE, ADAPTER, BOARD):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in (METRICS, CURVE, LOAD):
        (output / name).unlink(missing_ok=True)
