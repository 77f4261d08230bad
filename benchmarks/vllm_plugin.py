"""ReMix on vLLM's CPU build against vLLM without adapters and against vLLM's own LoRA.

    .venv-vllm/bin/python -m benchmarks.vllm_plugin [--base FOLDER] [--rounds 5] [--out FOLDER]

All engines live in one process, one thread, float32, eager, and take turns within each round: the
base without LoRA support, vLLM's own LoRA of rank k·r (made before the plugin is installed), and
ReMix with four adapters mixed; also base-only traffic on the ReMix engine. Tokens are counted
against the CPU time of the process, which other processes disturb least; a ratio is the median
over the rounds of the ratio to the base within one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
os.environ["VLLM_PLUGINS"] = ""  # ours is installed by hand, after vLLM's own engines are there

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from benchmarks.adapters import AdapterShape, write_random_adapter
from benchmarks.machine import describe_machine
from remix_runtime.base_model import without_weights
from remix_runtime.demo_model import demo_model
from remix_runtime.engines.vllm import plugin

SHAPES = (AdapterShape(8, 4, 8), AdapterShape(4, 2, 8))
TARGETS = ("gate_proj", "up_proj", "down_proj")
BATCHES = (1, 8, 32)
ADAPTERS = 4
PROMPT, NEW_TOKENS = 16, 32
PREFILL_REQUESTS, PREFILL_TOKENS = 4, 128


@dataclass(frozen=True)
class Lane:
    """An engine and the adapters that its requests take in turn."""

    name: str
    llm: LLM
    adapters: Sequence[LoRARequest | None]

    def decode(self, batch: int) -> float:
        """Tokens per CPU second once all prompts are computed."""
        engine, first = self._add(batch, PROMPT, NEW_TOKENS), set[str]()
        while len(first) < batch:
            first |= {output.request_id for output in engine.step()}
        started, tokens = time.process_time(), 0
        while engine.has_unfinished_requests():
            tokens += len(engine.step())
        return tokens / (time.process_time() - started)

    def prefill(self) -> float:
        """Prompt tokens per CPU second."""
        engine = self._add(PREFILL_REQUESTS, PREFILL_TOKENS, 1)
        started = time.process_time()
        while engine.has_unfinished_requests():
            engine.step()
        return PREFILL_REQUESTS * PREFILL_TOKENS / (time.process_time() - started)

    def _add(self, count: int, prompt: int, new_tokens: int) -> Any:
        engine = self.llm.llm_engine
        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        for number in range(count):
            ids = torch.randint(10, 40_000, (prompt,)).tolist()
            engine.add_request(
                f"{time.monotonic_ns()}-{number}",
                {"prompt_token_ids": ids},
                params,
                lora_request=self.adapters[number % len(self.adapters)],
            )
        return engine


def make_lanes(base: str, folder: Path) -> list[Lane]:
    network = without_weights(AutoConfig.from_pretrained(base))
    lanes = [Lane("base", _engine(base), [None])]
    for rank in sorted({shape.k * shape.r for shape in SHAPES}):
        paths = [_write_lora(base, folder / f"lora-{rank}-{i}", rank) for i in range(ADAPTERS)]
        lanes.append(Lane(f"vLLM's LoRA, rank {rank}", _lora_engine(base, rank), _named(paths)))
    plugin.register()
    remix = _lora_engine(base, max(shape.n * shape.r for shape in SHAPES))
    for number, shape in enumerate(SHAPES):
        paths = [folder / f"remix-{number}-{i}" for i in range(ADAPTERS)]
        for seed, path in enumerate(paths):
            write_random_adapter(path, network, shape, TARGETS, seed=seed)
        name = f"ReMix n{shape.n} k{shape.k} r{shape.r}"
        lanes.append(Lane(name, remix, _named(paths, first_id=1 + number * ADAPTERS)))
    lanes.append(Lane("ReMix engine, base only", remix, [None]))
    return lanes


def _engine(base: str, **options: Any) -> LLM:
    return LLM(
        base,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=512,
        max_num_seqs=max(BATCHES),
        max_num_batched_tokens=PREFILL_REQUESTS * PREFILL_TOKENS,
        **options,
    )


def _lora_engine(base: str, rank: int) -> LLM:
    return _engine(
        base,
        enable_lora=True,
        max_lora_rank=rank,
        max_loras=ADAPTERS,
        max_cpu_loras=4 * ADAPTERS,
        lora_target_modules=["gate_up_proj", "down_proj"],
    )


def _write_lora(base: str, folder: Path, rank: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights=False
    )
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def _named(folders: Sequence[Path], first_id: int = 1) -> list[LoRARequest]:
    return [LoRARequest(f.name, first_id + i, str(f)) for i, f in enumerate(folders)]


def measure(lanes: Sequence[Lane], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Case to lane to one rate per round."""
    cases: dict[str, Callable[[Lane], float]] = {
        f"decode {batch}": partial(Lane.decode, batch=batch) for batch in BATCHES
    }
    cases["prefill"] = Lane.prefill
    rates: dict[str, dict[str, list[float]]] = {case: {} for case in cases}
    for number in range(rounds + 1):
        for case, run in cases.items():
            for lane in lanes:
                rate = run(lane)
                if number:  # the first round warms up
                    rates[case].setdefault(lane.name, []).append(rate)
            print(f"round {number}: {case}", file=sys.stderr)
    return rates


def ratios(rates: dict[str, list[float]], to: str) -> dict[str, float]:
    return {
        name: statistics.median(a / b for a, b in zip(found, rates[to], strict=True))
        for name, found in rates.items()
    }


def report(rates: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| case | engine | tokens per CPU second | to the base |", "|---|---|---|---|"]
    for case, found in rates.items():
        for name, ratio in ratios(found, "base").items():
            rate = statistics.median(found[name])
            lines.append(f"| {case} | {name} | {rate:.1f} | {ratio:.2f} |")
    lines += ["", "| ReMix to vLLM's own LoRA of rank k·r | " + " | ".join(rates) + " |"]
    lines.append("|---|" + "---|" * len(rates))
    for shape in SHAPES:
        own = f"vLLM's LoRA, rank {shape.k * shape.r}"
        name = f"ReMix n{shape.n} k{shape.k} r{shape.r}"
        cells = [f"{ratios(found, own)[name]:.2f}" for found in rates.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", help="a model folder; the demo model by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, help="where the result is written, as JSON and Markdown"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        lanes = make_lanes(args.base or str(demo_model()), Path(name))
        rates = measure(lanes, args.rounds)
    machine = {**describe_machine(), "vllm": plugin.installed_version()}
    print(json.dumps(machine))
    print(report(rates))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = f"{machine['date'][:10]}-vllm-cpu"
        (args.out / f"{stem}.json").write_text(
            json.dumps({"machine": machine, "rates": rates}, indent=1) + "\n"
        )
        (args.out / f"{stem}.md").write_text(
            f"# ReMix on vLLM, CPU\n\n{json.dumps(machine)}\n\n{report(rates)}\n"
        )


if __name__ == "__main__":
    main()
