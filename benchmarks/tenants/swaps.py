"""A thousand set swaps under load, on a served engine: failures, mixed answers, times.

    python -m benchmarks.tenants.swaps [--base FOLDER] [--swaps 1000] [--bad 100]

Starts `remix serve` with tenants, 8 clients in 4 of them. First swaps one after the other, a tenth
of them bad; then rollbacks of all tenants at the same time; then PUTs that race for one revision.
Others' time to first token is compared between the blocks of swaps and the rests between them.
Exit code 1 means: a request failed, an answer mixed versions, a swap ended as it should not.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import torch
import typer
from transformers import PreTrainedModel

from benchmarks.adapters import README, write_random_adapter
from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import percentile
from benchmarks.shape import AdapterShape
from benchmarks.tenants.served import served
from benchmarks.tenants.storm import Report, Storm
from benchmarks.tenants.traffic import milliseconds
from remix_runtime.adapter.checkpoint import AdapterConfig, read_checkpoint, write_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.adapter.parity import record_parity
from remix_runtime.base.config import read_config
from remix_runtime.base.model import load_model
from remix_runtime.base.weights import without_weights

TENANTS, CLIENTS_PER_TENANT, ADAPTERS = 4, 2, 6
BLOCK = 25
ROLLBACKS, RACES, RACERS = 50, 25, 4
SHAPE, TARGETS = AdapterShape(4, 2, 4), ("down_proj", "up_proj")
PARITY_PROMPTS = [[5, 9, 200, 31], list(range(40))]


def make_adapters(base: Path, folder: Path, good: int) -> tuple[list[Path], list[Path]]:
    """Folders of adapters for the base, each with parity prompts, and of bad ones: made for another
    model; recorded with other weights than it has."""
    model = load_model(str(base))
    plain = [folder / f"plain-{seed}" for seed in range(good + 1)]
    for seed, weights in enumerate(plain):
        write_random_adapter(weights, model, SHAPE, TARGETS, seed)
    folders = [
        _with_parity(model, weights, weights, folder / f"good-{seed}")
        for seed, weights in enumerate(plain[:good])
    ]
    config = read_config(base)
    config.intermediate_size += 8
    foreign = folder / "foreign"
    write_random_adapter(foreign, without_weights(config), SHAPE, TARGETS, seed=0)
    return folders, [foreign, _with_parity(model, plain[0], plain[good], folder / "drifted")]


def _with_parity(model: PreTrainedModel, recorded: Path, weights: Path, folder: Path) -> Path:
    """The adapter in `weights` with the parity file of the one in `recorded`."""
    layers = attach_checkpoint(model, read_checkpoint(recorded))
    parity = record_parity(model, layers, PARITY_PROMPTS)
    for name, layer in layers.items():
        model.set_submodule(name, layer.base)
    adapter = read_checkpoint(weights)
    assert isinstance(adapter.config, AdapterConfig)
    write_checkpoint(
        folder, adapter.config, adapter.layers, readme=README, parity=parity, dtype=torch.bfloat16
    )
    return folder


async def run(
    base: Path, *, swaps: int, bad: int, rollbacks: int, races: int, rest_seconds: float
) -> Report:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good, refused = make_adapters(base, folder, ADAPTERS)
        async with served(base, folder / "data", folder) as (url, admin):
            storm = Storm(admin, seed=0)
            await storm.prepare(url, TENANTS, good, refused)
            async with storm.load(CLIENTS_PER_TENANT):
                await storm.swap(swaps, bad, block=BLOCK, rest_seconds=rest_seconds)
                await storm.roll_back(rollbacks)
                await storm.race(races, RACERS)
            return storm.report


def main(
    base: Base, swaps: int = 1000, bad: int = 100, rest_seconds: float = 2.0, out: Out = None
) -> None:
    """Swap sets of tenants under load; `bad` of the swaps must be refused."""
    sizes = {"swaps": swaps, "bad": bad, "rollbacks": ROLLBACKS, "races": RACES}
    report = asyncio.run(run(base, **sizes, rest_seconds=rest_seconds))
    wrong = report.unexpected + report.failed + report.mixed
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(report.swaps.items()))
    times = {
        "swap": report.swap_seconds,
        "first token, nobody swaps": report.quiet,
        "first token of others, one swaps": report.beside,
    }
    ratio = percentile(report.beside, 0.99) / percentile(report.quiet, 0.99)
    publish(
        out,
        "Swaps under load",
        f"answers {report.answers}, failed {len(report.failed)}, mixed {len(report.mixed)}",
        f"swaps by status: {statuses}; other than expected: {len(report.unexpected)}",
        Table(
            ["", "n", "p50 ms", "p99 ms"], [[name, *milliseconds(t)] for name, t in times.items()]
        ),
        f"others' p99 beside a swap: {ratio:.2f} times that without",
        *wrong[:20],
    )
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
