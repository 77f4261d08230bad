"""What a process of a run with a sharded base does in a test. Imported by a fork server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

import training.completion_loss
from tests.unit.training.killed import be_rank, train_rank
from training.base import load_base
from training.blocks import blocks_of
from training.config import load_config
from training.data import read_examples
from training.ranks import join_ranks
from training.trainer import Trainer

CHUNKED = 300
"""Logits that are in memory at a time: one position of a row."""


def train_in_chunks(*args: Any) -> None:
    """`train_rank`, with a head that runs on one position at a time. On some processors MKL's sums
    depend on where in memory their numbers lie, and FSDP gathers weights into places of its own:
    MKL is told to keep one order, before it computes anything."""
    os.environ["MKL_CBWR"] = "COMPATIBLE"
    training.completion_loss.LOGITS = CHUNKED
    train_rank(*args)


def look(recipe: str, rank: int, count: int, port: int, *_: Any) -> None:
    """Takes a step, and writes what this process holds of the base: the numbers of each block
    before and after it, and the most of all blocks while one ran, forwards or again."""
    be_rank(rank, count, port)
    config = load_config(Path(recipe))
    ranks = join_ranks(torch.device("cpu"))
    model, tokenizer = load_base(config.base, sharded=True)
    blocks = blocks_of(model).above
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    trainer = Trainer(config, model, examples, ranks=ranks)
    found: dict[str, Any] = {"before": [held(block) for block in blocks]}
    most = 0

    def count_all(*_: Any) -> None:
        nonlocal most
        most = max(most, sum(held(block) for block in blocks))

    for block in blocks:
        block.mlp.register_forward_hook(count_all)
    trainer.train_step()
    found |= {"after": [held(block) for block in blocks], "most": most}
    config.output.mkdir(exist_ok=True)
    (config.output / f"{rank}.json").write_text(json.dumps(found))
    ranks.leave()


def held(module: nn.Module) -> int:
    """The numbers of frozen parameters in this process's memory."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen)
