"""Trains and judges one run of the study."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.study_plan import MAX_LENGTH, MORE_STEPS, Run, Scale
from benchmarks.quality.tasks import TASKS, write_rows
from benchmarks.shape import in_upper_blocks
from remix_runtime.adapter.layers import detach
from remix_runtime.base.model import end_token_ids
from remix_runtime.demo_model import MODELS, demo_model
from training.base import load_base, pick_device
from training.config import TrainConfig, parse_config
from training.data import Rows, Sequences
from training.evaluation import questions_of, score, serving
from training.export import export_adapter
from training.held_out import held_out_losses
from training.log import row_of
from training.sources import open_rows
from training.trainer import Trainer

Result = dict[str, Any]


class Lab:
    """One base with the rows of one task."""

    def __init__(self, base: str, task: str, scale: Scale, data: Path, work: Path) -> None:
        self.scale = scale
        self.task = TASKS[task]
        self.base = str(demo_model(model=MODELS[base]))
        self.model, self.tokenizer = load_base(self.base, pick_device("auto"), dtype="auto")
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
        self.targets = in_upper_blocks(self.model.config.num_hidden_layers, scale.blocks)

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
            async with serving(self.base, threads=torch.get_num_threads()) as engine:
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
