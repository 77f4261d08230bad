"""A thousand set swaps under load, on a served engine: failures, mixed answers, times.

    python -m benchmarks.swaps [--base FOLDER] [--swaps 1000] [--bad 100]

Starts `remix serve` with tenants, 8 clients in 4 of them. First swaps one after the other, a tenth
of them bad; then rollbacks of all tenants at the same time; then PUTs that race for one revision.
Others' time to first token is compared between the blocks of swaps and the rests between them.
Exit code 1 means: a request failed, an answer mixed versions, a swap ended as it should not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.adapters import AdapterShape, write_random_adapter
from benchmarks.machine import describe_machine
from benchmarks.storm import Report, Storm, prepare
from benchmarks.traffic import percentile
from remix_runtime.adapter.checkpoint import read_checkpoint, write_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.adapter.parity import record_parity
from remix_runtime.base_model import without_weights
from remix_runtime.demo_model import demo_model

TENANTS, CLIENTS_PER_TENANT = 4, 2
BLOCK = 25
ROLLBACKS, RACES, RACERS = 50, 25, 4
SHAPE, TARGETS = AdapterShape(4, 2, 4), ("down_proj", "up_proj")
PARITY_PROMPTS = [[5, 9, 200, 31], list(range(40))]


def make_adapters(base: str, folder: Path, good: int) -> tuple[list[str], list[str]]:
    """Folders of adapters for the base, each with parity prompts, and of bad ones: made for another
    model; recorded with other weights than it has."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    folders = []
    plain = [folder / f"plain-{seed}" for seed in range(good + 1)]
    for seed, weights in enumerate(plain):
        write_random_adapter(weights, model, SHAPE, TARGETS, seed)
    for seed, weights in enumerate(plain[:good]):
        folders.append(_with_parity(model, weights, weights, folder / f"good-{seed}"))
    config = AutoConfig.from_pretrained(base)
    config.intermediate_size += 8
    foreign = folder / "foreign"
    write_random_adapter(foreign, without_weights(config), SHAPE, TARGETS, seed=0)
    drifted = _with_parity(model, plain[0], plain[good], folder / "drifted")
    return folders, [str(foreign), drifted]


def _with_parity(model: PreTrainedModel, recorded: Path, weights: Path, folder: Path) -> str:
    """The adapter in `weights` with the parity file of the one in `recorded`."""
    layers = attach_checkpoint(model, read_checkpoint(recorded))
    parity = record_parity(model, layers, PARITY_PROMPTS)
    for name, layer in layers.items():
        model.set_submodule(name, layer.base)
    checkpoint = read_checkpoint(weights)
    write_checkpoint(
        folder,
        checkpoint.config,
        checkpoint.layers,
        readme="# Random adapter of the benchmark\n",
        parity=parity,
        dtype=torch.bfloat16,
    )
    return str(folder)


@asynccontextmanager
async def served(
    base: str, data: Path, import_root: Path, *options: str
) -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    """`remix serve` with tenants in a process of its own: the URL of its API, a client of the
    other one."""
    key = secrets.token_hex(16)
    command = (sys.executable, "-c", "from remix_runtime.cli import main; main()", "serve")
    process = await asyncio.create_subprocess_exec(
        *(*command, "--base", base, "--data-dir", str(data), "--import-root", str(import_root)),
        *("--port", "0", "--admin-port", "0", *options),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "REMIX_ADMIN_KEY": key},
    )
    assert process.stdout is not None
    try:
        first = (await process.stdout.readline()).decode()
        urls = [word.strip(",") for word in first.split() if word.startswith("http")]
        if len(urls) != 2:
            raise RuntimeError("the server did not start")
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=urls[1], headers=headers, timeout=120) as admin:
            yield urls[0], admin
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def run(
    base: str, *, swaps: int, bad: int, rollbacks: int, races: int, rest_seconds: float
) -> Report:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good, refused = make_adapters(base, folder, good=6)
        async with served(base, folder / "data", folder) as (url, admin):
            tenants, texts, bad_digests = await prepare(admin, url, TENANTS, good, refused)
            unknown = secrets.token_hex(32)
            storm = Storm(admin, tenants, texts, [*bad_digests, unknown], seed=0)
            async with storm.load(CLIENTS_PER_TENANT):
                await storm.swap(swaps, bad, block=BLOCK, rest_seconds=rest_seconds)
                await storm.roll_back(rollbacks)
                await storm.race(races, RACERS)
            for tenant in tenants:
                await tenant.data.aclose()
            return storm.report


def describe(report: Report) -> str:
    def ms(values: list[float], share: float) -> str:
        return f"{1000 * percentile(values, share):.0f}" if values else "-"

    ratio = percentile(report.beside, 0.99) / percentile(report.quiet, 0.99)
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(report.swaps.items()))
    return "\n".join(
        (
            f"answers {report.answers}, failed {len(report.failed)}, mixed {len(report.mixed)}",
            f"swaps by status: {statuses}; other than expected: {len(report.unexpected)}",
            "",
            "| | n | p50 ms | p99 ms |",
            "|---|---|---|---|",
            f"| swap | {len(report.swap_seconds)} | {ms(report.swap_seconds, 0.5)} "
            f"| {ms(report.swap_seconds, 0.99)} |",
            f"| first token, nobody swaps | {len(report.quiet)} | {ms(report.quiet, 0.5)} "
            f"| {ms(report.quiet, 0.99)} |",
            f"| first token of others, one swaps | {len(report.beside)} "
            f"| {ms(report.beside, 0.5)} | {ms(report.beside, 0.99)} |",
            "",
            f"others' p99 beside a swap: {ratio:.2f} times that without",
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", help="a model folder; the demo model by default")
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--bad", type=int, default=100)
    parser.add_argument("--rest-seconds", type=float, default=2.0)
    args = parser.parse_args()
    base = args.base or str(demo_model())
    report = asyncio.run(
        run(
            base,
            swaps=args.swaps,
            bad=args.bad,
            rollbacks=ROLLBACKS,
            races=RACES,
            rest_seconds=args.rest_seconds,
        )
    )
    print(json.dumps(describe_machine()))
    print(describe(report))
    wrong = report.unexpected + report.failed + report.mixed
    for line in wrong[:20]:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
