"""ReMix on vLLM's CPU build against vLLM without adapters and against vLLM's own LoRA.

    .venv-vllm/bin/python -m benchmarks.speed.vllm_plugin [--base FOLDER] [--rounds 5] [--out STEM]

Every engine is a process with one thread, float32, eager, and they take turns within each round:
the base without LoRA support, vLLM's own LoRA of rank k·r without the plugin, and ReMix with four
adapters mixed; also base-only traffic on the ReMix engine. Tokens are counted against the CPU time
of the process; a ratio is the median over the rounds of the ratio to the base within one round.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

from benchmarks.adapters import empty_model, write_random_adapters, write_random_lora
from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import ratio, run_rounds
from benchmarks.shape import AdapterShape
from benchmarks.speed.measure import Metric, rates
from benchmarks.speed.plan import random_workload
from benchmarks.speed.worker import Worker

SHAPES = (AdapterShape(8, 4, 8), AdapterShape(4, 2, 8))
ADAPTERS = 4
CASES: dict[str, tuple[Metric, tuple[int, int, int]]] = {
    **{f"decode {batch}": ("decode", (batch, 16, 32)) for batch in (1, 8, 32)},
    "prefill": ("prefill", (4, 128, 1)),
}
"""What is measured at how many requests, of how many prompt tokens and new ones."""
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "max_model_len": 512,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
}
ENVIRONMENT = {"VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "1"}
"""The plugin is registered by hand, in the ReMix engine alone."""


@dataclass(frozen=True, slots=True)
class Lane:
    """An engine and the adapters that its requests take in turn."""

    worker: Worker
    adapters: Sequence[int | None]

    def rate(self, case: str, vocab_size: int, number: int) -> float | None:
        metric, sizes = CASES[case]
        asked = random_workload(*sizes, self.adapters, vocab_size, f"{case} {number}")
        found: float | None = getattr(rates(asked, self.worker.run(asked)), metric)
        return found


def own_lora(shape: AdapterShape) -> str:
    return f"vLLM's LoRA, rank {shape.k * shape.r}"


def start_lanes(base: Path, folder: Path, stack: ExitStack) -> dict[str, Lane]:
    def start(adapters: Sequence[Path], rank: int, *, remix: bool = False) -> Worker:
        options = {
            "model": str(base),
            "engine": ENGINE,
            "adapters": [str(path) for path in adapters],
            "lora_rank": rank,
            "lora_slots": ADAPTERS if adapters else 0,
            "remix": remix,
            "cpu_time": True,
        }
        target, log = "benchmarks.speed.systems.vllm:VllmSystem", folder / f"{remix}-{rank}.log"
        worker = Worker("vllm", target, options, log=log, threads=1, env=ENVIRONMENT)
        return stack.enter_context(closing(worker))

    lanes = {"base": Lane(start([], 0), [None])}
    for shape in reversed(SHAPES):
        rank = shape.k * shape.r
        path = write_random_lora(folder / f"lora-{rank}", empty_model(base), rank)
        lanes[own_lora(shape)] = Lane(start([path] * ADAPTERS, rank), range(ADAPTERS))
    folders = [
        path
        for number, shape in enumerate(SHAPES)
        for path in write_random_adapters(folder / f"remix-{number}", base, shape, ADAPTERS)
    ]
    remix = start(folders, max(shape.n * shape.r for shape in SHAPES), remix=True)
    for number, shape in enumerate(SHAPES):
        lanes[f"ReMix {shape}"] = Lane(remix, range(number * ADAPTERS, (number + 1) * ADAPTERS))
    lanes["ReMix engine, base only"] = Lane(remix, [None])
    return lanes


def main(base: Base, rounds: int = 5, out: Out = None) -> None:
    """Compare ReMix on vLLM with vLLM."""
    vocab_size = empty_model(base).config.vocab_size
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        lanes = start_lanes(base, Path(name), stack)
        sides = {
            case: {name: partial(lane.rate, case, vocab_size) for name, lane in lanes.items()}
            for case in CASES
        }
        found = run_rounds(sides, rounds=rounds, warm_up=1)

    def median_ratio(case: str, lane: str, to: str) -> str:
        within_rounds = ratio(found[case][lane], found[case][to])
        return "" if within_rounds is None else f"{within_rounds.median:.2f}"

    to_base = [
        [case, lane, f"{statistics.median(rates.values()):.1f}", median_ratio(case, lane, "base")]
        for case, by_lane in found.items()
        for lane, rates in by_lane.items()
    ]
    to_own = [
        [f"ReMix {shape}"] + [median_ratio(c, f"ReMix {shape}", own_lora(shape)) for c in CASES]
        for shape in SHAPES
    ]
    publish(
        out,
        "ReMix on vLLM, CPU",
        Table(["case", "engine", "tokens per CPU second", "to the base"], to_base),
        Table(["ReMix to vLLM's own LoRA of rank k·r", *CASES], to_own),
        rates=found,
    )


if __name__ == "__main__":
    typer.run(main)
