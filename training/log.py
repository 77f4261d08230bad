"""Writes what a run reports: metrics.jsonl, TensorBoard, the progress bar."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from training.state import UNFINISHED
from training.trackers import Trackers
from training.trainer import StepReport

METRICS = "metrics.jsonl"
Row = dict[str, Any]


def row_of(report: StepReport) -> Row:
    """One line of metrics.jsonl. `expert_load` is the mean over layers, one number per expert."""
    row: Row = {
        "step": report.step,
        "loss": report.loss,
        "loss_spread": report.loss_spread,
        "router_entropy": report.routing.entropy,
        "effective_support_size": report.routing.support,
        "expert_load": [round(x, 5) for x in report.routing.load_Ln.mean(0).tolist()],
        "expert_gradient_norm": report.expert_norm,
        "router_gradient_norm": report.router_norm,
        "learning_rate_factor": report.learning_rate_factor,
        "tokens_per_second": report.tokens / report.seconds,
    }
    if report.held_out_loss is not None:
        row["held_out_loss"] = report.held_out_loss
    return row


def read_metrics(folder: Path) -> list[Row]:
    """Reads the rows of metrics.jsonl; lines that a crash left half-written are left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


class RunLog:
    """Context manager that `write`s every step's report to file, TensorBoard and terminal.

    `start` is the step that a resumed run goes on from: rows after it are written again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        steps: int,
        console: Console,
        trackers: Trackers | None = None,
    ) -> None:
        self.rows = [row for row in read_metrics(folder) if row["step"] <= start]
        self.last: StepReport | None = None
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / f"{METRICS}{UNFINISHED}"
        kept.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows), encoding="utf-8")
        kept.replace(folder / METRICS)
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._trackers = trackers
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=console,
        )
        self._task: TaskID = self._progress.add_task(
            "train", total=steps, completed=start, shown=""
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._trackers:
            self._trackers.finish()
        self._board.close()
        self._file.close()

    def write(self, report: StepReport) -> None:
        row = row_of(report)
        self.rows.append(row)
        self.last = report
        self._put(row)
        scalars = {key: value for key, value in row.items() if isinstance(value, float)}
        scalars |= {f"expert_load/{i}": load for i, load in enumerate(row["expert_load"])}
        for key, value in scalars.items():
            self._board.add_scalar(key, value, report.step)
        if self._trackers:
            self._trackers.log(scalars, report.step)
        self._progress.update(self._task, completed=report.step, shown=_shown(row))

    def _put(self, row: Row) -> None:
        """On disk when it returns: the state that is saved next counts on it."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _shown(row: Row) -> str:
    load = row["expert_load"]
    text = (
        f"loss {row['loss']:.3f}  entropy {row['router_entropy']:.2f}  "
        f"support {row['effective_support_size']:.2f}  "
        f"load {min(load):.2f}–{max(load):.2f}  {row['tokens_per_second']:.0f} tok/s"
    )
    return text + (f"  held out {row['held_out_loss']:.3f}" if "held_out_loss" in row else "")
