"""`remix train --dry-run`: what a run would be, before hours are spent on it.

Two steps are taken in memory on the longest rows that were looked at, so that the second has
everything that a step ever holds; nothing is written.
"""

from __future__ import annotations

import itertools
import resource
import sys
from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from training.config import TrainConfig
from training.data import collate
from training.encoding import Example
from training.memory import Memory, memory_of
from training.objective import batch_as_seen
from training.preparation import prepare
from training.progress import stage
from training.quantization import is_quantized
from training.trainer import StepReport, Trainer

LOOKED_AT = 1000
"""Rows whose lengths are counted."""
SHOWN = 3
"""Rows that are printed as they will be learned."""
_CONTEXT = 400
"""Characters of a text without loss that are printed."""


def dry_run(config: TrainConfig, console: Console) -> None:
    """Prints parameters, tokens, time and memory of a step, and the first rows with what carries a
    loss between « and ». Raises what `run_training` raises."""
    alone = config.model_copy(update={"shard_base": False})
    made = prepare(alone, console)
    rows = made.rows
    with stage(console, f"reading rows of {rows.path}"):
        rows.read_on(LOOKED_AT)
    met = [rows[index] for index in range(min(LOOKED_AT, len(rows)))]
    lengths = [sum(len(example.tokens) - 1 for example in row) for row in met]
    longest = sorted(range(len(met)), key=lambda index: -lengths[index])[: config.batch_size]
    in_memory = made.config.model_copy(update={"steps": 2, "cache_trunk": False})
    trainer = Trainer(in_memory, made.model, [met[index] for index in longest])
    reports: list[StepReport] = []
    with stage(console, "taking two steps on the longest rows"):
        trainer.run(on_step=reports.append)
    batch = collate([example for index in longest for example in met[index]])
    predicted = memory_of(
        made.model, trainer.layers, made.config, batch_as_seen(batch, made.config)
    )
    rows_a_step = config.batch_size * config.gradient_accumulation
    in_routers = sum(p.numel() for n, p in trainer.parameters.items() if n.endswith(".router_nD"))
    in_experts = sum(p.numel() for p in trainer.parameters.values()) - in_routers
    added = sum(p.numel() for layer in trainer.layers.values() for p in layer.parameters(False))
    of_base = made.model.num_parameters() - added
    table = Table(show_header=False)
    for name, value in {
        "adapted linears": f"{len(trainer.layers)}",
        "trained parameters": f"{in_experts:,} in experts, {in_routers:,} in routers: "
        f"{(in_experts + in_routers) / of_base:.2%} of the base's {of_base:,}",
        "base": f"{str(made.model.dtype).removeprefix('torch.')} on {made.model.device}"
        + (f", its linears by {config.base_quantization}" if is_quantized(made.model) else ""),
        "rows": f"{len(rows):,}; of the first {len(met):,} each has {min(lengths):,} to "
        f"{max(lengths):,} tokens",
        "run": f"{made.config.steps:,} steps of {rows_a_step} rows, "
        f"{made.config.steps * rows_a_step / len(rows):.2f} epochs",
        "tokens in a step": "about "
        f"{sum(lengths) / len(lengths) * rows_a_step * config.copies:,.0f}, the {config.copies} "
        "selections counted",
        "a step on the longest rows": f"{reports[-1].seconds:.1f} s, {reports[-1].tokens:,} tokens",
        "memory, at most": f"{_most_memory(made.model.device) / 1e9:.2f} GB in these two steps",
        "memory, by the formula": _shown(predicted),
    }.items():
        table.add_row(name, value)
    console.print(table)
    for number, row in enumerate(met[:SHOWN], start=1):
        for example in row:
            console.print(Text(f"row {number}: ", style="bold") + learned(example, made.tokenizer))


def learned(example: Example, tokenizer: PreTrainedTokenizerBase) -> Text:
    """A sequence as text, with what carries a loss between « and »."""
    text = Text()
    pairs = zip(example.tokens, example.is_target, strict=True)
    for is_target, span in itertools.groupby(pairs, key=lambda pair: pair[1]):
        said = tokenizer.decode([token for token, _ in span], skip_special_tokens=False)
        if is_target:
            text.append(f"«{said}»", style="bold green")
        else:
            text.append(said if len(said) <= _CONTEXT else f"… {said[-_CONTEXT:]}")
    return text


def _shown(memory: Memory | None) -> str:
    """A prediction by its parts."""
    if memory is None:
        return "is for other shapes of blocks (docs/training.md)"
    parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in asdict(memory).items())
    return f"{memory.total / 1e9:.2f} GB: {parts}"


def _most_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
