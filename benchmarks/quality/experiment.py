"""Does ReMix train better than its baselines? One script, three seeds, one table.

    python -m benchmarks.quality.experiment --base PATH_OR_ID

Equal steps, batches and activated parameters: top_k experts of rank r against one LoRA of rank
top_k · r. First every method's learning rates are searched with a seed and development rows of
their own, then all methods run with each of the seeds and are judged on held-out rows that
nothing was chosen by. Finished runs are kept as JSON under `--work`, so a stopped experiment goes
on where it was; the report and its plots are written to docs/results.

Simplified on purpose: only the last layers are adapted, so that the frozen layers below can be
computed once per row (exact: they never change); data are made by `skills.py`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.quality.remembered import remembered
from benchmarks.quality.report import Run, write_report
from benchmarks.quality.skills import write_mixed_skills
from remix_runtime.adapter.layers import detach
from training.base import load_base
from training.config import parse_config
from training.data import read_examples
from training.encoding import Example
from training.held_out import held_out_loss, held_out_losses
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
EXPERT_RATES = (1e-2, 3e-2, 1e-1)
FIRST_ROUTER_RATE, OTHER_ROUTER_RATES = 3e-3, (1e-4, 3e-4, 1e-3, 1e-2)
TUNING_SEED = 1000
TAKES_OVER = {"remix sequence": "remix causal"}
"""Not searched for itself: it takes the rates of another method."""
PARTS = {"train": 200, "development": 8, "held_out": 16}
"""Rows of each skill."""
PADDING = 0
"""The id that `collate` pads with; no row of the skills ends in it."""
SAMPLED_DRAWS = 2
"""Passes over the held-out rows that a sampled loss is the mean of."""

Rates = dict[str, float]


@dataclass(frozen=True)
class Task:
    """What every run shares: the model's upper layers, the rows, the settings."""

    model: PreTrainedModel
    train: list[Example]
    development: list[Example]
    """Rows that learning rates are chosen by."""
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


def prepare(setting: Mapping[str, Any], work: Path) -> Task:
    """Loads the base, makes the data and gathers the shared settings."""
    model, tokenizer = load_base(setting["base"])
    below = keep_upper_layers(model, setting["layers"])
    files = write_mixed_skills(work, parts=PARTS, seed=0)
    examples = {
        part: read_examples(path, tokenizer, max_length=128)[0] for part, path in files.items()
    }
    below.remember([example for part in examples.values() for example in part])
    rows = [json.loads(line) for line in files["held_out"].read_text().splitlines()]
    shared = ("base", "num_experts", "top_k", "r", "steps", "batch_size")
    return Task(
        model=model,
        **examples,
        skills=[row["prompt"].partition(":")[0] for row in rows],
        settings={
            **{name: setting[name] for name in shared},
            "data": str(files["train"]),
            "output": "unused",
            "target_modules": setting["targets"],
            "eval_every": max(1, setting["steps"] // 4),
        },
        selections=setting["selections"],
    )


@contextmanager
def trainer_of(
    task: Task, method: str, rates: Rates, *, seed: int, held_out: list[Example]
) -> Iterator[Trainer]:
    """A trainer on the shared model, which is the base alone again afterwards."""
    selections = {"selections": task.selections} if METHODS[method].get("method") is None else {}
    config = parse_config({**task.settings, **selections, **METHODS[method], **rates, "seed": seed})
    trainer = Trainer(config, task.model, task.train, held_out)
    try:
        yield trainer
    finally:
        detach(task.model, trainer.layers)


def train_and_score(task: Task, method: str, rates: Rates, *, seed: int) -> Run:
    """One run: its curves, and its held-out losses by way of inference."""
    started = time.perf_counter()
    with trainer_of(task, method, rates, seed=seed, held_out=task.held_out) as trainer:
        reports: list[StepReport] = []
        trainer.run(on_step=reports.append)
        top_k = held_out_losses(task.model, task.held_out)
        by_skill = {
            skill: statistics.mean(x for x, s in zip(top_k, task.skills, strict=True) if s == skill)
            for skill in sorted(set(task.skills))
        }
        held_out = {"top-k": statistics.mean(top_k)}
        if trainer.config.method == "remix":
            # As if inference drew its experts as training does.
            rule = sampling_rule(generator(seed, "sampling at inference"))
            with selecting(trainer.layers, rule):
                held_out["sampled"] = statistics.mean(
                    held_out_loss(task.model, task.held_out) for _ in range(SAMPLED_DRAWS)
                )
    return {
        "method": method,
        "seed": seed,
        "rates": rates,
        "held_out": held_out,
        "by_skill": by_skill,
        "rows": [row_of(report) for report in reports],
        "seconds": time.perf_counter() - started,
    }


def tuned_rates(task: Task, work: Path) -> dict[str, Rates]:
    """The learning rates of every method, by coordinate search on the development rows: expert
    rates at the first router rate, then the other router rates at the best expert rate."""
    found: dict[str, Rates] = {}
    for method in METHODS:
        if method in TAKES_OVER:
            continue
        learns_routes = method not in ("lora", "random routing")
        router = {"router_learning_rate": FIRST_ROUTER_RATE} if learns_routes else {}
        tried = [{"expert_learning_rate": rate, **router} for rate in EXPERT_RATES]
        loss = functools.partial(development_loss, task, work, method)
        best = min(tried, key=loss)
        if learns_routes:
            others = [{**best, "router_learning_rate": rate} for rate in OTHER_ROUTER_RATES]
            best = min([best, *others], key=loss)
        found[method] = best
    return {method: found[TAKES_OVER.get(method, method)] for method in METHODS}


def development_loss(task: Task, work: Path, method: str, rates: Rates) -> float:
    def run() -> dict[str, Any]:
        with trainer_of(task, method, rates, seed=TUNING_SEED, held_out=[]) as trainer:
            trainer.run(on_step=lambda _: None)
            return {"loss": held_out_loss(task.model, task.development)}

    name = "-".join(["tune", method.replace(" ", "_"), *map(str, rates.values())])
    loss = float(remembered(work / f"{name}.json", run)["loss"])
    print(f"search {method:15} {rates} {loss:.4f}", flush=True)
    return loss


def main(
    context: typer.Context,
    base: Annotated[str, typer.Option(help="Folder or hub id of a Llama base model.")],
    base_title: Annotated[str, typer.Option(help="For the report.")] = "SmolLM2-135M-Instruct",
    name: Annotated[str, typer.Option(help="Of the report's files.")] = "quality",
    steps: int = 400,
    batch_size: int = 8,
    selections: int = 4,
    layers: Annotated[int, typer.Option(help="How many of the last layers adapt.")] = 1,
    num_experts: int = 8,
    top_k: int = 2,
    r: int = 1,
    targets: Annotated[str, typer.Option(help="Linears that adapt.")] = "down_proj",
    seeds: str = "0,1,2",
    threads: int = 1,
    work: Path = Path("runs/quality"),
    output: Path = Path("docs/results"),
) -> None:
    """Train every method with every seed and write the report."""
    torch.set_num_threads(threads)
    setting = {**context.params, "targets": targets.split(",")}
    task = prepare(setting, work)
    rates = tuned_rates(task, work)
    base_loss = held_out_loss(task.model, task.held_out)
    runs: list[Run] = []
    done: list[int] = []
    for seed in map(int, seeds.split(",")):
        done.append(seed)
        for method in METHODS:
            path = work / f"{method.replace(' ', '_')}-{seed}.json"
            train = functools.partial(train_and_score, task, method, rates[method], seed=seed)
            run = remembered(path, train)
            print(f"seed {seed} {method:15} {run['held_out']} {run['seconds']:.0f} s", flush=True)
            runs.append(run)
        write_report(runs, base_loss=base_loss, setting={**setting, "seeds": done}, folder=output)


if __name__ == "__main__":
    typer.run(main)
