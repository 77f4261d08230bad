"""One training run from its config to its folder.

output/
  adapter/               the trained adapter, servable (not for method softmax)
  state/                 training states to resume from
  trunk/                 while it runs with `cache_trunk`: what lies below the adapter, for each row
  metrics.jsonl  tensorboard/
  learning_curve.png  expert_load.png
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from remix_runtime.adapter.checkpoint import tidy_place
from remix_runtime.adapter.checkpoint.config import emit_config
from remix_runtime.errors import CheckpointFormatError, ConfigError
from training.base import pick_device
from training.claim import claimed
from training.config import TrainConfig
from training.data import Sequences
from training.export import export_adapter
from training.log import METRICS, Row, RunLog
from training.plots import plot_expert_load, plot_learning_curve
from training.preparation import prepare
from training.progress import stage
from training.ranks import Ranks, join_ranks
from training.reading import Reading
from training.state import UNFINISHED, state_files
from training.targets import are_names
from training.trackers import Trackers
from training.trainer import StepReport, Trainer

STATE, TRUNK, ADAPTER, BOARD = "state", "trunk", "adapter", "tensorboard"
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

    Raises `ConfigError` for an output folder that another run writes to, or that holds a run
    already, unless `resume` goes on from its newest state or `overwrite` deletes that run's files;
    `DataError`, `TrainingError`.
    """
    if resume and overwrite:
        raise ConfigError("found --resume and --overwrite, expected at most one of them")
    _require_writable(config)
    ranks = join_ranks(pick_device(config.device))
    if console is None or not ranks.is_first:
        console = Console(quiet=True)
    try:
        if ranks.is_first:
            return _run_first(config, ranks, console, resume=resume, overwrite=overwrite)
        return _run_beside(config, ranks, console, resume=resume)
    finally:
        ranks.leave()


def _run_first(
    config: TrainConfig, ranks: Ranks, console: Console, *, resume: bool, overwrite: bool
) -> RunResult:
    """The process that writes."""
    with claimed(config.output):
        if not (resume or overwrite):
            _require_free(config.output)
        _tidy(config.output)
        trainer, reading = _prepared(config, ranks, console)
        start = trainer.resume(config.output / STATE) if resume else 0
        if start > (steps := trainer.config.steps):
            raise ConfigError(
                f"steps: found {steps}, expected at least {start}, the step of the saved state"
            )
        reading.begin()
        if not start:  # of another run perhaps, on another base
            shutil.rmtree(config.output / TRUNK, ignore_errors=True)
        if overwrite:  # the new run can begin
            _clear(config.output)
        ranks.wait()  # for the others to have what they resume from
        return _train(trainer, reading, start, console)


def _run_beside(config: TrainConfig, ranks: Ranks, console: Console, *, resume: bool) -> RunResult:
    """Another one, which takes the same steps and writes nothing."""
    trainer, _ = _prepared(config, ranks, console)
    if resume:
        trainer.resume(config.output / STATE)
    ranks.wait()
    trainer.run(on_step=lambda _: None)
    ranks.wait()
    return RunResult(rows=[], adapter=None, digest=None)


def _prepared(config: TrainConfig, ranks: Ranks, console: Console) -> tuple[Trainer, Reading]:
    made = prepare(config, console, processes=ranks.count)
    trainer = Trainer(
        made.config,
        made.model,
        made.rows,
        Sequences(made.held_out) if made.held_out else (),
        contents=made.contents,
        trunk_folder=config.output / TRUNK,
        ranks=ranks,
    )
    return trainer, Reading([rows for rows in (made.rows, made.held_out) if rows], console)


def _train(trainer: Trainer, reading: Reading, start: int, console: Console) -> RunResult:
    """From the step `start` to the adapter."""
    config, output = trainer.config, trainer.config.output
    begins = f"going on from step {start}" if start else "training begins"
    console.print(f"{begins}: {config.steps} steps, {len(trainer.rows)} rows")
    trackers = Trackers(config.report_to, output, config.model_dump(mode="json"), console)
    with RunLog(output, start=start, steps=config.steps, console=console, trackers=trackers) as log:

        def after_step(report: StepReport) -> None:
            log.write(report)
            reading.go_on(seconds=report.seconds)  # at most half of the time goes into it

        trainer.run(state_folder=output / STATE, on_step=after_step)
    best, exported = trainer.best, trainer.step
    if not best.step and (config.keep == "best" or trainer.step < config.steps):
        console.print("no held-out loss was a number: the adapter is of the last step")
    elif trainer.step < config.steps:
        console.print(f"ended at step {trainer.step}: no held-out loss below that of {best.step}")
    if config.keep == "best" and best.step:
        best.put_into(trainer.parameters)
        exported = best.step
        console.print(f"the adapter is of step {best.step}, held-out loss {best.loss:.4f}")
    trainer.ranks.wait()  # nobody needs the trunk any more
    reading.finish()
    shutil.rmtree(output / TRUNK, ignore_errors=True)
    with stage(console, f"writing {output}"):
        adapter, digest = None, None
        if config.method != "softmax":
            adapter = output / ADAPTER
            digest = export_adapter(
                adapter,
                config=config,
                model=trainer.model,
                layers=trainer.layers,
                rows=trainer.rows,
                log=[row for row in log.rows if row["step"] <= exported],
            )
        plot_learning_curve(log.rows, output / CURVE)  # after what the run is for
        if log.last is not None:
            plot_expert_load(log.rows, log.last.routing.load_Ln, output / LOAD)
    return RunResult(rows=log.rows, adapter=adapter, digest=digest)


def _require_writable(config: TrainConfig) -> None:
    """Raises `ConfigError`, before training, for settings that no adapter folder can hold."""
    if config.method != "softmax":
        adapter = config.adapter
        if not are_names(config.target_modules):  # which the base has, and so are valid
            adapter = replace(adapter, target_modules=("any",))
        try:
            emit_config(adapter)
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
