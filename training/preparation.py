"""What a run is made from, by its config: rows, base, tokenizer, and what they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remix_runtime.adapter.layers import base_shapes
from remix_runtime.base.folder import find_base
from remix_runtime.base.model import end_token_ids
from training.base import load_base, pick_device, row_limit
from training.config import TrainConfig
from training.data import BatchOrder, Rows
from training.identity import base_contents
from training.progress import stage
from training.quantization import require_library
from training.sharding import require_several
from training.sources import open_rows
from training.targets import resolved

MAX_LENGTH = 512
"""Tokens of a row where the settings say nothing."""


def steps_of(config: TrainConfig, rows: int, *, processes: int = 1) -> int:
    """The steps of a run. An epoch leaves out the rows that fill no batch."""
    if config.epochs is None:
        return config.steps
    order = BatchOrder(rows, lambda _: 0, batch_size=config.batch_size, seed=config.seed)
    passes = config.epochs * order.batches_per_epoch
    return math.ceil(passes / (config.gradient_accumulation * processes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    config: TrainConfig
    """With what follows from base and rows: the limit of tokens, target modules by name, steps."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    held_out: Rows | None
    contents: Mapping[str, str]
    """Digests, by which a resumed run knows what it was made from."""


def prepare(config: TrainConfig, console: Console, *, processes: int = 1) -> Material:
    """Opens the rows, before the slow base, and loads the base. Raises `ConfigError`,
    `DataError`."""
    require_library(config.base_quantization)
    if config.shard_base:
        require_several(processes)
    wanted = {"data": (config.data, config.split)}
    if config.eval_data is not None or config.eval_split is not None:
        wanted["eval_data"] = (config.eval_data or config.data, config.eval_split)
    opened = {}
    for name, (source, split) in wanted.items():
        with stage(console, f"opening {source}") as move:
            opened[name] = open_rows(source, split=split, subset=config.subset, move=move)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with stage(console, f"loading the base {config.base}"):
        find_base(config.base, download=True)
        hashed = _beside(lambda: base_contents(config.base))
        model, tokenizer = load_base(
            config.base,
            pick_device(config.device),
            chat_template=config.defaults.chat_template,
            dtype=config.base_dtype,
            quantization=config.base_quantization,
            sharded=config.shard_base,
        )
    limit = row_limit(model.config, config.max_length, default=MAX_LENGTH)
    ends = end_token_ids(model, tokenizer.eos_token_id)
    with stage(console, "hashing the base"):
        contents = {**hashed.result(), "base end tokens": str(sorted(ends))}
    rows = {
        name: Rows(
            source,
            tokenizer,
            max_length=limit,
            too_long=config.too_long,
            end_ids=ends,
            columns={str(ours): theirs for ours, theirs in config.columns.items()},
        )
        for name, source in opened.items()
    }
    known = {
        "max_length": limit,
        "target_modules": resolved(config.target_modules, base_shapes(model)),
        "steps": steps_of(config, len(rows["data"]), processes=processes),
        "epochs": None,  # or the model card would state both, which no recipe may
    }
    return Material(
        config=config.model_copy(update=known),
        model=model,
        tokenizer=tokenizer,
        rows=rows["data"],
        held_out=rows.get("eval_data"),
        contents={**contents, **{name: source.digest for name, source in opened.items()}},
    )


def _beside(work: Callable[[], Mapping[str, str]]) -> Future[Mapping[str, str]]:
    """Does the work in a thread, for which no process that has failed waits."""
    done: Future[Mapping[str, str]] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    return done
