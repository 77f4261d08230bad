"""ReMix on vLLM's CPU build against vLLM without adapters and against vLLM's own LoRA.

    .venv-vllm/bin/python -m benchmarks.speed.vllm_plugin [--base FOLDER] [--rounds 5] [--out STEM]

All engines live in one process, one thread, float32, eager, and take turns within each round: the
base without LoRA support, vLLM's own LoRA of rank k·r (made before the plugin is installed), and
ReMix with four adapters mixed; also base-only traffic on the ReMix engine. Tokens are counted
against the CPU time of the process, which other processes disturb least; a ratio is the median
over the rounds of the ratio to the base within one round.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
from benchmarks.vllm_engines import Adapters, lora_options, named, submit  # isort: skip

import torch
import typer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from vllm import LLM

from benchmarks.adapters import FEED_FORWARD, write_random_adapters
from benchmarks.machine import describe_machine
from benchmarks.options import Base, Out
from benchmarks.result import table, write_result
from benchmarks.rounds import ratio, run_rounds
from benchmarks.shape import AdapterShape
from remix_runtime.engines.vllm import plugin

SHAPES = (AdapterShape(8, 4, 8), AdapterShape(4, 2, 8))
BATCHES = (1, 8, 32)
ADAPTERS = 4
PROMPT, NEW_TOKENS = 16, 32
PREFILL_REQUESTS, PREFILL_TOKENS = 4, 128

Rates = dict[str, dict[str, dict[int, float]]]
"""By case, lane and round."""


@dataclass(frozen=True)
class Lane:
    """An engine and the adapters that its requests take in turn."""

    llm: LLM
    adapters: Adapters

    def decode(self, batch: int, number: int) -> float:
        """Tokens per CPU second once all prompts are computed."""
        engine, first = submit(self.llm, batch, PROMPT, NEW_TOKENS, self.adapters), set[str]()
        while len(first) < batch:
            first |= {output.request_id for output in engine.step()}
        started, tokens = time.process_time(), 0
        while engine.has_unfinished_requests():
            tokens += len(engine.step())
        return tokens / (time.process_time() - started)

    def prefill(self, number: int) -> float:
        """Prompt tokens per CPU second."""
        engine = submit(self.llm, PREFILL_REQUESTS, PREFILL_TOKENS, 1, self.adapters)
        started = time.process_time()
        while engine.has_unfinished_requests():
            engine.step()
        return PREFILL_REQUESTS * PREFILL_TOKENS / (time.process_time() - started)


def own_lora(shape: AdapterShape) -> str:
    return f"vLLM's LoRA, rank {shape.k * shape.r}"


def make_lanes(base: Path, folder: Path) -> dict[str, Lane]:
    def engine(**options: Any) -> LLM:
        return LLM(
            str(base),
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=512,
            max_num_seqs=max(BATCHES),
            max_num_batched_tokens=PREFILL_REQUESTS * PREFILL_TOKENS,
            **options,
        )

    def lora_engine(rank: int) -> LLM:
        return engine(**lora_options(rank, ADAPTERS, cpu_slots=4 * ADAPTERS))

    lanes = {"base": Lane(engine(), [None])}
    for shape in reversed(SHAPES):
        rank = shape.k * shape.r
        paths = [folder / f"lora-{rank}-{i}" for i in range(ADAPTERS)]
        for path in paths:
            write_lora(base, path, rank)
        lanes[own_lora(shape)] = Lane(lora_engine(rank), named(paths))
    plugin.register()
    remix = lora_engine(max(shape.n * shape.r for shape in SHAPES))
    for number, shape in enumerate(SHAPES):
        paths = write_random_adapters(folder / str(shape), base, shape, ADAPTERS)
        lanes[f"ReMix {shape}"] = Lane(remix, named(paths, first_id=1 + number * ADAPTERS))
    lanes["ReMix engine, base only"] = Lane(remix, [None])
    return lanes


def write_lora(base: Path, folder: Path, rank: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(FEED_FORWARD), init_lora_weights=False
    )
    get_peft_model(model, config).save_pretrained(folder)


def measure(lanes: dict[str, Lane], rounds: int) -> Rates:
    cases = {
        f"decode {batch}": {name: partial(lane.decode, batch) for name, lane in lanes.items()}
        for batch in BATCHES
    }
    cases["prefill"] = {name: lane.prefill for name, lane in lanes.items()}
    return run_rounds(cases, rounds=rounds, warm_up=1)


def ratios(found: dict[str, dict[int, float]], name: str, to: str) -> str:
    within_rounds = ratio(found[name], found[to])
    assert within_rounds is not None
    return f"{within_rounds.median:.2f}"


def main(base: Base, rounds: int = 5, out: Out = None) -> None:
    """Compare ReMix on vLLM with vLLM."""
    with tempfile.TemporaryDirectory() as name:
        rates = measure(make_lanes(base, Path(name)), rounds)
    to_base = [
        [case, lane, f"{statistics.median(found[lane].values()):.1f}", ratios(found, lane, "base")]
        for case, found in rates.items()
        for lane in found
    ]
    to_own = [
        [f"ReMix {shape}", *(ratios(f, f"ReMix {shape}", own_lora(shape)) for f in rates.values())]
        for shape in SHAPES
    ]
    parts = [
        table(["case", "engine", "tokens per CPU second", "to the base"], to_base),
        table(["ReMix to vLLM's own LoRA of rank k·r", *rates], to_own),
    ]
    print(write_result(out, "ReMix on vLLM, CPU", parts, describe_machine(), {"rates": rates}))


if __name__ == "__main__":
    typer.run(main)
