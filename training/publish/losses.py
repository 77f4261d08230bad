"""Held-out rows, and the loss of each with some adapters and with the base, as the serving engine
has them: what is compared is what is served."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rich.console import Console

from remix_runtime.adapter.checkpoint import read_defaults
from remix_runtime.base.config import read_config
from remix_runtime.base.folder import find_base
from remix_runtime.contracts import Engine
from remix_runtime.errors import ConfigError, DataError
from training.base import load_tokenizer_of, row_limit
from training.config import TrainConfig
from training.data import NO_COLUMNS, Rows, TooLong
from training.encoding import Example
from training.evaluation import MAX_LENGTH, completion_loss, serving
from training.progress import Move, stage
from training.publish.gate import MIN_ROWS
from training.sources import is_hub_name, open_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rows that the adapter was not trained on."""

    data: Path
    split: str | None = None
    subset: str | None = None
    columns: Mapping[str, str] = field(default_factory=lambda: NO_COLUMNS)
    max_length: int | None = None
    too_long: TooLong = "refuse"

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """A run's. Raises `ConfigError` where it has none."""
        if config.eval_data is None and config.eval_split is None:
            raise ConfigError(
                "publish: found no held-out rows to compare adapters on, expected eval_data or "
                "eval_split"
            )
        return cls(
            data=config.eval_data or config.data,
            split=config.eval_split,
            subset=config.subset,
            columns={str(ours): theirs for ours, theirs in config.columns.items()},
            max_length=config.max_length,
            too_long=config.too_long,
        )

    def require_enough(self) -> None:
        """Raises `DataError` for fewer rows than the gate needs, and where they cannot be read."""
        if not (self.data.exists() or is_hub_name(self.data)):
            raise DataError(f"{self.data}: there is no such file")
        count = len(open_rows(self.data, split=self.split, subset=self.subset))
        if count < MIN_ROWS:
            raise DataError(
                f"{self.data}: found {count} held-out rows, expected {MIN_ROWS} or more"
            )


def row_losses(
    base: str, adapters: Mapping[str, Path], held_out: HeldOut, console: Console, *, batch_size: int
) -> dict[str, list[float]]:
    """The loss of each row with the base, under "base", and with each adapter by its name: the mean
    over a row's sequences of their mean completion loss, in nats. Each adapter reads the rows by
    its own chat template, if it has one. Raises `CheckpointError`, `ConfigError`, `DataError`."""
    folder = find_base(base, download=True)
    longest = row_limit(read_config(folder), held_out.max_length, default=MAX_LENGTH)
    source = open_rows(held_out.data, split=held_out.split, subset=held_out.subset)

    def rows_by(template: str | None, engine: Engine) -> list[list[Example]]:
        rows = Rows(
            source,
            load_tokenizer_of(folder, chat_template=template),
            max_length=longest,
            too_long=held_out.too_long,
            end_ids=frozenset(engine.model.eos_token_ids),
            columns=held_out.columns,
        )
        return list(map(list, rows))

    async def scored() -> dict[str, list[float]]:
        async with serving(str(folder), console, max_running=batch_size) as engine:
            digests: dict[str, str | None] = {"base": None}
            templates: dict[str, str | None] = {"base": None}
            for name, adapter in adapters.items():
                digests[name] = (await engine.load_adapter(adapter)).digest
                templates[name] = read_defaults(adapter).chat_template
            rows = {text: rows_by(text, engine) for text in set(templates.values())}
            total = sum(len(row) for name in digests for row in rows[templates[name]])
            done = itertools.count(1)
            with stage(console, f"scoring {total} held-out sequences") as move:
                return {
                    name: await _scored(
                        engine,
                        digest,
                        rows[templates[name]],
                        batch_size=batch_size,
                        move=lambda _: move(next(done) / total),
                    )
                    for name, digest in digests.items()
                }

    return asyncio.run(scored())


async def _scored(
    engine: Engine,
    digest: str | None,
    rows: Sequence[Sequence[Example]],
    *,
    batch_size: int,
    move: Move,
) -> list[float]:
    places = asyncio.Semaphore(batch_size)

    async def loss_of(row: Sequence[Example]) -> float:
        losses = []
        for example in row:
            async with places:
                losses.append(await completion_loss(engine, example, digest))
            move(0.0)
        return sum(losses) / len(losses)

    return list(await asyncio.gather(*map(loss_of, rows)))
