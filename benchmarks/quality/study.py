"""ReMix against its baselines on real tasks, with rates searched per method by as many trials.

    python -m benchmarks.quality.study --data FOLDER [--minutes 90] [--scale small]

Every run is kept as JSON under `--work`; the command goes on where it was stopped, begins no run
after `--minutes`, and writes a report of what there is. Runs come in the order of their worth: the
rules for router rates on every task, the search for rates, then the seeds.

Simplified at the scale `small`: only the feed-forward linears of the last blocks are adapted, what
lies below them is kept on disk, and steps are few. `paper` adapts all of them and wants a GPU.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.quality.remembered import remembered
from benchmarks.quality.study_lab import Lab, Result
from benchmarks.quality.study_plan import (
    METHODS,
    RULES_SEEDS,
    SCALES,
    Run,
    Scale,
    Settings,
    final_runs,
    rule_runs,
    search_runs,
)
from benchmarks.quality.study_report import loss_of, write_report
from benchmarks.quality.tasks import TASKS
from remix_runtime.demo_model import MODELS


def best_rates(results: list[Result]) -> dict[str, Settings]:
    """The settings of each method's trial with the lowest development loss."""
    found: dict[str, tuple[float, Settings]] = {}
    for result in results:
        method = next(name for name in METHODS if result["name"].startswith(f"{name} "))
        loss = loss_of(result, "development")
        if method not in found or loss < found[method][0]:
            found[method] = loss, result["settings"]
    return {method: settings for method, (_, settings) in found.items()}


class Study:
    def __init__(self, scale: Scale, data: Path, work: Path, minutes: float) -> None:
        self._scale, self._data, self._work = scale, data, work
        self._end = time.monotonic() + minutes * 60
        self.results: list[Result] = []

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one base is in memory at a time
    def lab(self, base: str, task: str) -> Lab:
        return Lab(base, task, self._scale, self._data, self._work)

    def made(self, run: Run) -> Result:
        result = self.lab(run.base, run.task).result(run)
        shown = {part: round(loss_of(result, part), 4) for part in result["losses"]}
        print(f"{run.file} {shown} {result['accuracy']} {result['seconds']:.0f} s", flush=True)
        return result

    def results_of(self, runs: Iterator[Run]) -> list[Result]:
        """Those that are kept, and those that can still be made. Fewer than the runs when the time
        is over."""
        found = []
        for run in runs:
            path = self._work / "runs" / run.file
            if not path.exists() and time.monotonic() >= self._end:
                continue
            result = remembered(path, functools.partial(self.made, run))
            found.append(result)
        self.results += found
        return found


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tasks' files, see tasks.py.")],
    bases: str = ",".join(MODELS),
    tasks: str = ",".join(TASKS),
    parts: Annotated[str, typer.Option(help="Of rules, search and final.")] = "rules,search,final",
    scale: Annotated[str, typer.Option(help="tiny, brief, small or paper.")] = "small",
    minutes: Annotated[float, typer.Option(help="No run begins later.")] = 60.0,
    threads: int = 1,
    work: Path = Path("runs/study"),
    out: Annotated[Path | None, typer.Option(help="Stem of the report's files.")] = None,
) -> None:
    """Run what is missing and report what there is."""
    torch.set_num_threads(threads)
    study = Study(SCALES[scale], data, work / scale, minutes)
    pairs = list(itertools.product(bases.split(","), tasks.split(",")))
    if "rules" in parts:
        for seed, (base, task) in itertools.product(RULES_SEEDS, pairs):
            study.results_of(rule_runs(base, task, seed))
    for base, task in pairs:
        if "search" in parts:
            found = study.results_of(search_runs(base, task))
            rates = best_rates(found)
            is_whole = len(found) == len(list(search_runs(base, task)))
            if is_whole and "final" in parts:
                study.results_of(final_runs(base, task, rates))
    print(f"study: {len(study.results)} runs are done", flush=True)
    write_report(study.results, scale=scale, setting=asdict(SCALES[scale]), out=out)


if __name__ == "__main__":
    typer.run(main)
