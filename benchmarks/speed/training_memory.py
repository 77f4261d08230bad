"""The peak memory of training steps on the CPU, beside what the formula predicts.

    python -m benchmarks.speed.training_memory [--out STEM]

Each case is a process of its own: it loads a base, takes three steps on rows of random tokens, and
tells the most memory it had since it began to load, by Linux's own count. Every case is run twice:
as it is, and with glibc's heap told to give large blocks back (`MALLOC_MMAP_THRESHOLD_`), since
what stays of others between the tensors is no part of any formula.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.options import Out
from benchmarks.result import Table, publish
from benchmarks.shape import in_upper_blocks
from benchmarks.speed.training import random_examples
from remix_runtime.demo_model import QWEN_CODER, SMOLLM2, demo_model
from training.base import load_base
from training.config import parse_config
from training.data import collate
from training.memory import memory_of
from training.objective import batch_as_seen
from training.trainer import Trainer

TOKENS = 160
CASES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M, all blocks, M 4, 2 rows": {"base": SMOLLM2.name, "batch_size": 2},
    "SmolLM2-135M, upper 4 blocks, M 4, 4 rows": {
        "base": SMOLLM2.name,
        "batch_size": 4,
        "upper": 4,
    },
    "Qwen2.5-Coder-0.5B, all blocks, computed again, M 4, 1 row": {
        "base": QWEN_CODER.name,
        "batch_size": 1,
        "gradient_checkpointing": True,
    },
    "SmolLM2-135M, all blocks, bfloat16, computed again, M 2, 2 rows": {
        "base": SMOLLM2.name,
        "batch_size": 2,
        "selections": 2,
        "base_dtype": "bfloat16",
        "gradient_checkpointing": True,
    },
}
HEAPS = {"as it is": None, "blocks of 1 MiB given back": "1048576"}


def main(
    out: Out = None,
    case: Annotated[str | None, typer.Option(hidden=True, help="Run one in this process.")] = None,
) -> None:
    """Measure the peak memory of training steps."""
    if case is not None:
        print(json.dumps(run(**CASES[case])))
        return
    rows, figures = [], {}
    for name in CASES:
        for heap, threshold in HEAPS.items():
            found = measured(name, threshold)
            figures[f"{name}, {heap}"] = found
            peak, total = found["peak"], found["predicted_total"]
            rows.append([name, heap, _gb(peak), _gb(total), f"{total / peak:.2f}"])
            print(rows[-1], flush=True)
    publish(
        out,
        "The peak memory of training steps",
        f"n 8, k 4, r 8 on all feed-forward linears; {TOKENS} tokens a row, half learned; "
        "from before the base is loaded to the end of the third step.",
        Table(["case", "heap", "peak GB", "formula GB", "formula / peak"], rows),
        **figures,
    )


def measured(case: str, threshold: str | None) -> dict[str, Any]:
    """What a process of its own finds."""
    heap = {} if threshold is None else {"MALLOC_MMAP_THRESHOLD_": threshold}
    command = [sys.executable, "-m", "benchmarks.speed.training_memory", "--case", case]
    done = subprocess.run(
        command, env={**os.environ, **heap}, check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(base: str, *, upper: int | None = None, **settings: Any) -> dict[str, Any]:
    """Three steps, their peak and what the formula says."""
    before = _status("VmRSS")
    folder = str(demo_model(model=next(m for m in (SMOLLM2, QWEN_CODER) if m.name == base)))
    model, _ = load_base(folder, dtype=settings.get("base_dtype", "float32"))
    config = parse_config(
        {
            "base": folder,
            "data": "random.jsonl",
            "output": "unused",
            "steps": 3,
            "target_modules": in_upper_blocks(model.config.num_hidden_layers, upper),
            **settings,
        }
    )
    rows = random_examples(config.batch_size, TOKENS + 1, model.config.vocab_size, 0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is not that of steps
    trainer = Trainer(config, model, rows)
    trainer.run(on_step=lambda _: None)
    peak = _status("VmHWM") - before
    predicted = memory_of(model, trainer.layers, config, batch_as_seen(collate(rows), config))
    assert predicted is not None, "both bases have the formula's blocks"
    return {
        "peak": peak,
        "predicted_total": predicted.total,
        "predicted": asdict(predicted),
        "threads": torch.get_num_threads(),
    }


def _status(field: str) -> int:
    """Bytes, of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


if __name__ == "__main__":
    typer.run(main)
