"""Does ReMix train better than its baselines? One script, three seeds, one table.

    python -m benchmarks.quality --base PATH_OR_ID

Equal steps, batches and activated parameters: top_k experts of rank r against one LoRA of rank
top_k · r. Every method has the learning rates that `--tune` found best on another seed. Finished
runs are kept as JSON under `--work`, so a stopped experiment goes on where it was; the report is
written to docs/results/quality.md with its plots.

Simplified on purpose: only the last layers are adapted, so that the frozen layers below can be
computed once per row (exact: they never change); data are made by `quality_skills.py`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.quality_report import write_report
from benchmarks.quality_skills import write_mixed_skills
from remix_runtime.layers import detach
from training.base import load_base
from training.config import parse_config
from training.data import Example, read_examples
from training.evaluation import held_out_loss, held_out_losses
from training.log import row_of
from training.objective import sampling_rule, selecting
from training.seeds import generator
from training.trainer import StepReport, Trainer

METHODS: dict[str, dict[str, Any]] = {
    "remix causal": {"credit": "causal"},
    "remix sequence": {"credit": "sequence"},
    "random routing": {"router": "random"},
    "lora": {"method": "lora"},
    "softmax": {"method": "softmax"},
}
# Chosen after `--tune`, as docs/LOG.md, "Training", says.
RATES: dict[str, dict[str, float]] = {
    "remix causal": {"expert_learning_rate": 1e-2, "router_learning_rate": 3e-2},
    "remix sequence": {"expert_learning_rate": 1e-2, "router_learning_rate": 3e-2},
    "random routing": {"expert_learning_rate": 1e-2},
    "lora": {"expert_learning_rate": 1e-2},
    "softmax": {"expert_learning_rate": 1e-2, "router_learning_rate": 3e-2},
}
EXPERT_RATES = (3e-3, 1e-2, 3e-2)
ROUTER_RATES = (1e-2, 1e-1)
TUNING_SEED = 1000
TRAIN_ROWS, HELD_OUT_ROWS = 80, 8
"""Of each skill."""
PADDING = 0
"""The id that `collate` pads with; no row of the skills ends in it."""
SAMPLED_DRAWS = 2
"""Passes over the held-out rows that a sampled loss is the mean of."""


@dataclass(frozen=True)
class Task:
    """What every run shares: the model's upper layers, the rows, the settings."""

    model: PreTrainedModel
    train: list[Example]
    held_out: list[Example]
    skills: list[str]
    """The skill of each held-out row."""
    settings: dict[str, Any]
    selections: int


class FrozenBelow(nn.Module):
    """Stands in for the embedding of a Llama model that lost its lowest layers.

    Returns what those layers would have, computed once per row and remembered. In a causal model
    a row's states do not depend on the padding on its right.
    """

    def __init__(self, lower: nn.Module) -> None:
        super().__init__()
        self._lower = (lower,)  # in a tuple, so that its linears are no targets for adapters
        self._known: dict[tuple[int, ...], Tensor] = {}

    def remember(self, examples: Sequence[Example]) -> None:
        """Runs the lower layers over `examples`, rows of one length at a time."""
        rows = sorted({example.tokens[:-1] for example in examples}, key=len)
        for _, same in itertools.groupby(rows, key=len):
            group = list(same)
            with torch.no_grad():
                output = self._lower[0](input_ids=torch.tensor(group), use_cache=False)
            self._known.update(zip(group, output.last_hidden_state, strict=True))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """States [B, T, D] of rows that were remembered, zeros on their padding."""
        rows = []
        for padded in ids_BT.tolist():
            while padded[-1] == PADDING:
                padded.pop()
            rows.append(self._known[tuple(padded)])
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def keep_upper_layers(model: PreTrainedModel, count: int) -> FrozenBelow:
    """Leaves the last `count` layers in `model`, which still gives the same logits."""
    inner = model.model
    lower = copy.copy(inner)
    lower._modules = {**inner._modules, "norm": nn.Identity()}
    lower.layers = inner.layers[:-count]
    inner.embed_tokens = below = FrozenBelow(lower)
    inner.layers = inner.layers[-count:]
    return below


def prepare(args: argparse.Namespace) -> Task:
    """Loads the base, makes the data and gathers the shared settings."""
    model, tokenizer = load_base(args.base)
    below = keep_upper_layers(model, args.layers)
    files = write_mixed_skills(args.work, train=TRAIN_ROWS, held_out=HELD_OUT_ROWS, seed=0)
    train, held_out = (read_examples(path, tokenizer, max_length=128)[0] for path in files)
    below.remember([*train, *held_out])
    rows = [json.loads(line) for line in files[1].read_text().splitlines()]
    return Task(
        model=model,
        train=train,
        held_out=held_out,
        skills=[row["prompt"].partition(":")[0] for row in rows],
        settings={
            "base": args.base,
            "data": str(files[0]),
            "output": "unused",
            "steps": args.steps,
            "batch_size": args.batch_size,
            "eval_every": max(1, args.steps // 3),
        },
        selections=args.selections,
    )


def train_and_score(task: Task, method: str, *, seed: int, **overrides: Any) -> dict[str, Any]:
    """One run: its curves, and its held-out losses by way of inference."""
    selections = {"selections": task.selections} if METHODS[method].get("method") is None else {}
    config = parse_config(
        {
            **task.settings,
            **selections,
            **METHODS[method],
            **RATES[method],
            "seed": seed,
            **overrides,
        }
    )
    started = time.perf_counter()
    trainer = Trainer(config, task.model, task.train, task.held_out)
    try:
        reports: list[StepReport] = []
        trainer.run(on_step=reports.append)
        top_k = held_out_losses(task.model, task.held_out)
        by_skill = {
            skill: statistics.mean(x for x, s in zip(top_k, task.skills, strict=True) if s == skill)
            for skill in sorted(set(task.skills))
        }
        held_out = {"top-k": statistics.mean(top_k)}
        if config.method == "remix":
            held_out["sampled"] = sampled_loss(task, trainer, seed)
        return {
            "method": method,
            "seed": seed,
            "settings": config.model_dump(mode="json", include=set(RATES[method]) | {"steps"}),
            "held_out": held_out,
            "by_skill": by_skill,
            "rows": [row_of(report) for report in reports],
            "seconds": time.perf_counter() - started,
        }
    finally:
        detach(task.model, trainer.layers)


def sampled_loss(task: Task, trainer: Trainer, seed: int) -> float:
    """Held-out loss when inference draws its experts as training does."""
    rule = sampling_rule(generator(seed, "sampling at inference"))
    with selecting(trainer.layers, rule):
        return statistics.mean(
            held_out_loss(task.model, task.held_out) for _ in range(SAMPLED_DRAWS)
        )


def tune(task: Task, work: Path) -> None:
    """Coordinate search on the tuning seed: expert rates at the default router rate, then router
    rates at the best expert rate. The other two ReMix runs take over what causal credit found."""
    for method in ("lora", "softmax", "remix causal"):
        tried = [{**RATES[method], "expert_learning_rate": rate} for rate in EXPERT_RATES]
        best = min(tried, key=functools.partial(tuning_loss, task, work, method))
        if "router_learning_rate" in best:
            for rate in ROUTER_RATES:
                tuning_loss(task, work, method, {**best, "router_learning_rate": rate})


def tuning_loss(task: Task, work: Path, method: str, rates: dict[str, float]) -> float:
    name = "-".join(["tune", method.replace(" ", "_"), *map(str, rates.values())])
    run = remembered(
        work / f"{name}.json",
        lambda: train_and_score(task, method, seed=TUNING_SEED, **rates),
    )
    print(f"{method:15} {rates} {run['held_out']} {run['seconds']:.0f} s", flush=True)
    return float(run["held_out"]["top-k"])


def remembered(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, kept in a file so that a second call only reads it."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="folder or hub id of a Llama base model")
    parser.add_argument("--base-title", default="SmolLM2-135M-Instruct", help="for the report")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--selections", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4, help="how many of the last layers adapt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--tune", action="store_true", help="only search the learning rates")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = prepare(args)
    if args.tune:
        tune(task, args.work)
        return
    config = parse_config(task.settings)
    base_loss = held_out_loss(task.model, task.held_out)
    setting = {
        **vars(args),
        "num_experts": config.num_experts,
        "top_k": config.top_k,
        "r": config.r,
    }
    runs: list[dict[str, Any]] = []
    for done, seed in enumerate(args.seeds, start=1):
        for method in METHODS:
            run = remembered(
                args.work / f"{method.replace(' ', '_')}-{seed}.json",
                functools.partial(train_and_score, task, method, seed=seed),
            )
            print(f"seed {seed} {method:15} {run['held_out']} {run['seconds']:.0f} s", flush=True)
            runs.append(run)
        setting["seeds"] = args.seeds[:done]
        write_report(runs, base_loss=base_loss, setting=setting, folder=args.output)


if __name__ == "__main__":
    main()
