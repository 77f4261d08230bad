"""ReMix against its baselines on real tasks, with rates searched per method by as many trials.

    python -m benchmarks.quality.study --data FOLDER [--minutes 90] [--scale small]

Every run is kept as JSON under `--work`; the command goes on where it was stopped, begins no run
after `--minutes`, and writes a report of what there is. Runs come in the order of their worth: the
rules for router rates on every task, the search for rates, then the seeds.

Simplified at the scale `small`: only the feed-forward linears of the last blocks are adapted, what
lies below them is kept on disk, and steps are few. `paper` adapts all of them and wants a GPU.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.quality.study_report import write_report
from benchmarks.quality.tasks import TASKS, write_rows
from remix_runtime.adapter.layers import detach
from remix_runtime.base.model import end_token_ids
from remix_runtime.demo_model import MODELS, demo_model
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from training.base import load_base
from training.config import TrainConfig, parse_config
from training.data import Rows, Sequences
from training.evaluation import questions_of, score
from training.export import export_adapter
from training.held_out import held_out_losses
from training.log import row_of
from training.sources import open_rows
from training.trainer import Trainer

Settings = dict[str, Any]
Result = dict[str, Any]

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
MAX_LENGTH = 320
TUNING_SEED = 1000
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Scale:
    blocks: int | None
    """How many of the last blocks are adapted; None: all."""
    steps: int
    batch_size: int
    development: int
    held_out: int
    judged: int
    """Held-out rows whose answers are judged."""


SCALES = {
    "tiny": Scale(1, 2, 2, 4, 4, 2),
    "small": Scale(2, 60, 4, 64, 128, 64),
    "paper": Scale(None, 400, 4, 128, 512, 256),
}

METHODS: Mapping[str, Settings] = {
    "ReMix, M 4": {"selections": 4},
    "LoRA": {"method": "lora", "scaling": "lora"},
    "rsLoRA": {"method": "lora"},
    "random routing": {"router": "random"},
    "softmax mixture": {"method": "softmax"},
    "ReMix, M 2": {"selections": 2},
    "ReMix, M 8": {"selections": 8},
    "rsLoRA, equal time": {"method": "lora"},
}
TAKES_OVER = {
    "ReMix, M 2": "ReMix, M 4",
    "ReMix, M 8": "ReMix, M 4",
    "rsLoRA, equal time": "rsLoRA",
}
"""Methods whose rates are another's."""
MORE_STEPS = {"rsLoRA, equal time": 4}
"""A step of ReMix runs M rows for each of a baseline's."""
RULES: Mapping[str, Settings] = {
    "0.1 logits per step": {"router_logits_per_step": 0.1},
    "3e-2 for every layer": {"router_learning_rate": 3e-2},
    "0.3 logits per step": {"router_logits_per_step": 0.3},
    "1e-3 for every layer": {"router_learning_rate": 1e-3},
    "0.03 logits per step": {"router_logits_per_step": 0.03},
    "1 logit per step": {"router_logits_per_step": 1.0},
}
RULES_SEEDS = (TUNING_SEED, TUNING_SEED + 1)
EXPERT_RATES = (1e-3, 3e-3, 1e-2)
ROUTER_STEPS = (0.1, 0.3)
PLAIN_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Of methods whose routers learn nothing: as many trials as the others have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, by all that it depends on."""

    part: str
    base: str
    task: str
    name: str
    settings: Settings
    seed: int
    final: bool = False
    """Judged on held-out rows, by answers too."""

    @property
    def file(self) -> str:
        words = (self.part, self.base, self.task, self.name, self.seed)
        return "_".join(str(word).replace(" ", "-").replace(",", "") for word in words) + ".json"


class Lab:
    """One base with the rows of one task."""

    def __init__(self, base: str, task: str, scale: Scale, data: Path, work: Path) -> None:
        self.scale = scale
        self.task = TASKS[task]
        self.base = str(demo_model(model=MODELS[base]))
        self.model, self.tokenizer = load_base(self.base)
        paths = write_rows(
            self.task,
            data,
            work / task,
            development=scale.development,
            held_out=scale.held_out,
        )
        self.paths = paths
        ends = end_token_ids(self.model, self.tokenizer.eos_token_id)
        self.rows = {
            name: Rows(
                open_rows(path),
                self.tokenizer,
                max_length=MAX_LENGTH,
                too_long="truncate",
                end_ids=ends,
            )
            for name, path in paths.items()
        }
        self.kept = work / base / f"trunk-{scale.blocks}"
        count = self.model.config.num_hidden_layers
        last = range(count - (scale.blocks or count), count)
        self.targets = [f"layers.{block}.mlp.{name}" for block in last for name in FEED_FORWARD]

    def config(self, run: Run) -> TrainConfig:
        steps = self.scale.steps * MORE_STEPS.get(run.name, 1)
        return parse_config(
            {
                "base": self.base,
                "data": str(self.paths["train"]),
                "output": "unused",
                "target_modules": self.targets,
                "cache_trunk": self.scale.blocks is not None,
                "steps": steps,
                "batch_size": self.scale.batch_size,
                "max_length": MAX_LENGTH,
                "seed": run.seed,
                **run.settings,
            }
        )

    @contextmanager
    def trainer(self, config: TrainConfig) -> Iterator[Trainer]:
        """A trainer on the shared model, which is the base alone again afterwards."""
        trainer = Trainer(config, self.model, self.rows["train"], trunk_folder=self.kept)
        try:
            yield trainer
        finally:
            detach(self.model, trainer.layers)

    def result(self, run: Run) -> Result:
        config = self.config(run)
        reports: list[Any] = []
        with self.trainer(config) as trainer:
            trainer.run(on_step=reports.append)
            parts = ("development", "held_out") if run.final else ("development",)
            losses = {
                part: held_out_losses(self.model, Sequences(self.rows[part]), trunk=trainer.trunk)
                for part in parts
            }
            servable = run.final and config.method != "softmax"
            accuracy = self.accuracy(trainer) if servable else None
        return {
            **asdict(run),
            "losses": losses,
            "accuracy": accuracy,
            "judged": self.scale.judged,
            "seconds": sum(report.seconds for report in reports),
            "rows": [row_of(report) for report in reports],
        }

    def accuracy(self, trainer: Trainer) -> float:
        """The share of right answers of the serving engine."""

        async def asked(folder: Path) -> float:
            engine = EmbeddedEngine(
                EmbeddedConfig(model=self.base, threads=torch.get_num_threads())
            )
            await engine.start()
            try:
                digest = (await engine.load_adapter(folder)).digest
                every = questions_of(
                    self.rows["held_out"],
                    self.tokenizer,
                    self.task.judge,
                    max_tokens=self.task.answer_tokens,
                )
                questions = list(itertools.islice(every, self.scale.judged))
                found = await score(engine, {"": digest}, questions, batch_size=16)
                return found[""].accuracy
            finally:
                await engine.stop()

        with tempfile.TemporaryDirectory() as folder:
            export_adapter(
                Path(folder) / "adapter",
                config=trainer.config,
                model=trainer.model,
                layers=trainer.layers,
                rows=trainer.rows,
                log=(),
            )
            return asyncio.run(asked(Path(folder) / "adapter"))


def rule_runs(base: str, task: str, seed: int) -> Iterator[Run]:
    """Rules for the routers' rates, everything else by default."""
    for name, settings in RULES.items():
        yield Run(part="rules", base=base, task=task, name=name, settings=settings, seed=seed)


def search_runs(base: str, task: str) -> Iterator[Run]:
    for method, settings in METHODS.items():
        if method in TAKES_OVER:
            continue
        learns_routes = settings.get("method") != "lora" and "router" not in settings
        trials: list[Settings] = [{"expert_learning_rate": rate} for rate in PLAIN_RATES]
        if learns_routes:
            trials = [
                {"expert_learning_rate": rate, "router_logits_per_step": step}
                for rate, step in itertools.product(EXPERT_RATES, ROUTER_STEPS)
            ]
        for trial in trials:
            name = " ".join([method, *map(str, trial.values())])
            yield Run(
                part="search",
                base=base,
                task=task,
                name=name,
                settings={**settings, **trial},
                seed=TUNING_SEED,
            )


def final_runs(base: str, task: str, found: Mapping[str, Settings]) -> Iterator[Run]:
    """Every method with every seed at its best rates, and ReMix by its defaults alone."""
    finals = {
        method: {**found[TAKES_OVER.get(method, method)], **settings}
        for method, settings in METHODS.items()
    }
    for seed, (name, settings) in itertools.product(
        SEEDS, {"ReMix, defaults alone": {}, **finals}.items()
    ):
        yield Run(
            part="final",
            base=base,
            task=task,
            name=name,
            settings=settings,
            seed=seed,
            final=True,
        )


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def best_rates(results: list[Result]) -> dict[str, Settings]:
    """The settings of each method's trial with the lowest development loss."""
    found: dict[str, tuple[float, Settings]] = {}
    for result in results:
        method = next(name for name in METHODS if result["name"].startswith(f"{name} "))
        loss = mean(result["losses"]["development"])
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

    def results_of(self, runs: Iterator[Run]) -> list[Result]:
        """Those that are kept, and those that can still be made. Fewer than the runs when the time
        is over."""
        found = []
        for run in runs:
            path = self._work / "runs" / run.file
            if path.exists():
                result = json.loads(path.read_text())
            elif time.monotonic() < self._end:
                result = self.lab(run.base, run.task).result(run)
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(result))
                unfinished.replace(path)
                shown = {part: round(mean(x), 4) for part, x in result["losses"].items()}
                print(
                    f"{run.file} {shown} {result['accuracy']} {result['seconds']:.0f} s", flush=True
                )
            else:
                continue
            found.append(result)
        self.results += found
        return found


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tasks' files, see tasks.py.")],
    bases: str = ",".join(MODELS),
    tasks: str = ",".join(TASKS),
    parts: Annotated[str, typer.Option(help="Of rules, search and final.")] = "rules,search,final",
    scale: Annotated[str, typer.Option(help="tiny, small or paper.")] = "small",
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
    write_report(study.results, scale=scale, setting=asdict(SCALES[scale]), out=out)


if __name__ == "__main__":
    typer.run(main)
