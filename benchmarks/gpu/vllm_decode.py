"""ReMix on vLLM on a GPU: right tokens, CUDA graphs, and what a decode step costs.

    python -m benchmarks.gpu.vllm_decode --out STEM [--shape 8,4,8] [--mode graphs]

First a small model in float32: greedy tokens of three mixtures and the base, each alone, all in one
batch, and of the readable reference. Then random weights in the shape of Llama-3-8B, bf16, adapters
on the feed-forward linears: decode steps of an engine without adapters, of one with vLLM's own LoRA
of rank k·r, and of one with ReMix, in turns, at several numbers of requests and of adapters.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, PretrainedConfig

from benchmarks.adapters import (
    write_random_adapter,
    write_random_adapters,
    write_random_lora,
)
from benchmarks.agreement import agreement
from benchmarks.gpu.bases import llama_8b, small
from benchmarks.machine import describe_machine
from benchmarks.result import Table, fields, publish
from benchmarks.rounds import ratio, run_rounds
from benchmarks.shape import FEED_FORWARD, AdapterShape
from benchmarks.speed.plan import random_workload
from benchmarks.speed.systems.protocol import Workload
from benchmarks.speed.worker import Worker, WorkerError
from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.base.weights import without_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCABULARY = 32_000
CHECKED = (AdapterShape(8, 4, 8), AdapterShape(4, 2, 8), AdapterShape(1, 1, 16))
CHECKED_TOKENS = 24
ROUNDS = 3
THREADS = 4
TOLD_LINES = 40
"""Of the log of an engine that does not start."""
BASE, REMIX = "base", "ReMix"


def start(
    name: str, base: Path, mode: str, adapters: Sequence[Path], rank: int, **engine: Any
) -> Worker:
    """`compiled` is vLLM's default; `graphs` are CUDA graphs of what PyTorch would run. `name` is
    "ReMix" where the adapters are."""
    if mode == "graphs":
        engine["compilation_config"] = {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 8, 32],
        }
    engine |= {
        "skip_tokenizer_init": True,
        "max_model_len": 1024,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 2048,
        "gpu_memory_utilization": 0.1,
        # Said, not found out: engines that start at the same time would count each other's memory.
        "kv_cache_memory_bytes": 1 << 30,
    }
    options = {
        "model": str(base),
        "engine": {**engine, "enforce_eager": mode == "eager"},
        "adapters": [str(folder) for folder in adapters],
        "lora_rank": rank,
        "lora_slots": len(adapters),
        "remix": name == REMIX,
    }
    target = "benchmarks.speed.systems.vllm:VllmSystem"
    log = base / f"{name}.log"
    # The plugin is registered by hand: it may not be installed.
    environment = {"VLLM_PLUGINS": ""}
    try:
        return Worker(name, target, options, log=log, threads=THREADS, env=environment)
    except WorkerError:
        print(f"{name}:", *log.read_text(errors="replace").splitlines()[-TOLD_LINES:], sep="\n")
        raise


def reference(base: Path, prompt: list[int], adapter: Path | None) -> list[int]:
    """Greedy tokens of the readable model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        attach_checkpoint(model, read_checkpoint(adapter))
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        ids_1T = torch.tensor([prompt], device=DEVICE)
        out_1T = model.to(DEVICE).generate(ids_1T, max_new_tokens=CHECKED_TOKENS, **options)
    return list(out_1T[0, len(prompt) :].tolist())


def check(base: Path, mode: str) -> dict[str, Any]:
    """Shares of tokens that agree up to the first difference, in float32: each request alone
    against all in one batch, and these against the readable reference."""
    AutoModelForCausalLM.from_config(small(), dtype=torch.float32).save_pretrained(base)
    adapters = [
        write_random_adapters(base.parent / f"{mode}-{i}", base, shape, 1)[0]
        for i, shape in enumerate(CHECKED)
    ]
    # The attention backend that takes float32.
    attention = {"attention_backend": "TRITON_ATTN"} if DEVICE == "cuda" else {}
    rank = max(shape.n * shape.r for shape in CHECKED)
    engine = {"dtype": "float32", **attention}
    jobs = [
        (random.choices(range(2, VOCABULARY), k=length), adapter)
        for adapter in (*range(len(adapters)), None)
        for length in (1, 17, 90)
    ]
    with closing(start(REMIX, base, mode, adapters, rank, **engine)) as worker:

        def tokens(jobs: Sequence[tuple[list[int], int | None]]) -> list[list[int]]:
            prompts, chosen = [prompt for prompt, _ in jobs], [adapter for _, adapter in jobs]
            return worker.run(Workload(prompts, CHECKED_TOKENS, chosen)).tokens

        together = tokens(jobs)
        alone = [tokens([job])[0] for job in jobs]
    references = [reference(base, p, None if i is None else adapters[i]) for p, i in jobs]
    return {
        "sequences": len(jobs),
        "different": len({tuple(output) for output in together}),
        "alone_is_together": round(agreement(alone, together), 4),
        "together_is_reference": round(agreement(together, references), 4),
    }


def step_seconds(worker: Worker, batch: int, adapters: Sequence[int | None], number: int) -> float:
    """Median time of a decode step."""
    run = worker.run(random_workload(batch, 16, 64, adapters, VOCABULARY, f"{batch} {number}"))
    # Every request has begun when the last one has its first token.
    last = max(run.arrivals, key=lambda times: times[0])
    steps = [after - before for before, after in itertools.pairwise(last)]
    return statistics.median(steps[2:-2])


class Timing:
    """Decode steps of the engines of one adapter shape. One that cannot start or run is told of in
    `failures`, and stops no other."""

    def __init__(
        self,
        base: Path,
        config: PretrainedConfig,
        mode: str,
        shape: AdapterShape,
        batches: Sequence[int],
    ) -> None:
        """The base is a folder without weights: vLLM makes them up."""
        config.save_pretrained(base)
        model = without_weights(config)
        write_random_adapter(base / REMIX, model, shape, FEED_FORWARD, seed=0)
        self.failures: list[str] = []
        self.own = f"LoRA r{shape.k * shape.r}"
        self._base, self._mode, self._slots = base, mode, max(batches)
        self._cases = [(batch, count) for batch in batches for count in batches if count <= batch]
        # One folder under many ids: every load has memory of its own, which is what costs.
        self._adapters = {
            BASE: [],
            self.own: [write_random_lora(base / "lora", model, shape.k * shape.r)] * self._slots,
            REMIX: [base / REMIX] * self._slots,
        }
        self._ranks = {BASE: 0, self.own: shape.k * shape.r, REMIX: shape.n * shape.r}

    def rounds(self, seconds: float) -> dict[tuple[int, int], dict[str, dict[int, float]]]:
        """Seconds of a step by requests and adapters, engine and round."""
        end = time.monotonic() + seconds
        with ExitStack() as stack, ThreadPoolExecutor() as pool:
            started = zip(self._adapters, pool.map(self._start, self._adapters), strict=True)
            workers = {name: stack.enter_context(closing(w)) for name, w in started if w}
            left = end - time.monotonic()
            print(f"{len(workers)} engines started, {left:.0f} s are left", flush=True)
            sides = {
                case: {name: partial(self._step, worker, case) for name, worker in workers.items()}
                for case in self._cases
            }
            return run_rounds(sides, rounds=ROUNDS, warm_up=1, seconds=left, report=print)

    def table(self, found: Mapping[tuple[int, int], Mapping[str, Mapping[int, float]]]) -> Table:
        """Milliseconds, and ratios within the rounds."""
        rows: list[list[object]] = []
        for case, times in found.items():
            pairs = [(REMIX, self.own), (REMIX, BASE), (self.own, BASE)]
            ratios = [ratio(times.get(one, {}), times.get(other, {})) for one, other in pairs]
            ms = [
                f"{1e3 * statistics.median(times[name].values()):.2f}" if name in times else ""
                for name in self._adapters
            ]
            rows.append([*case, *ms, *(each.show(3) if each else "" for each in ratios)])
        names = (f"{name} ms" for name in self._adapters)
        over = (f"ReMix / {self.own}", "ReMix / base", f"{self.own} / base")
        return Table(["requests", "adapters", *names, *over], rows)

    def _start(self, name: str) -> Worker | None:
        engine = {"dtype": "bfloat16", "load_format": "dummy"}
        adapters, rank = self._adapters[name], self._ranks[name]
        try:
            worker = start(name, self._base, self._mode, adapters, rank, **engine)
            if adapters:  # fills the slots
                chosen = range(self._slots)
                worker.run(random_workload(self._slots, 16, 4, chosen, VOCABULARY, "slots"))
        except WorkerError as error:
            self._failed(str(error))
            return None
        return worker

    def _step(self, worker: Worker, case: tuple[int, int], number: int) -> float | None:
        batch, count = case
        try:
            adapters = [None] if worker.name == BASE else range(count)
            return step_seconds(worker, batch, adapters, number)
        except WorkerError as error:
            self._failed(f"{batch} requests, {count} adapters: {error}")
            return None

    def _failed(self, reason: str) -> None:
        self.failures.append(reason)
        print(reason, flush=True)


def main(
    out: Annotated[Path, typer.Option(help="Result path without ending.")],
    layers: int = 32,
    shape: Annotated[str, typer.Option(help="n,k,r of the timed adapters.")] = "4,2,8",
    batches: Annotated[str, typer.Option(help="Requests, and adapters.")] = "1,8,32",
    check_modes: Annotated[str, typer.Option(help="Whose tokens are compared.")] = "eager,compiled",
    mode: Annotated[str, typer.Option(help="Of the timed engines; none: no timing.")] = "graphs",
    seconds: Annotated[float, typer.Option(help="Rounds that would end later are left out.")] = 600,
    tiny: Annotated[
        bool, typer.Option(envvar="REMIX_GPU_TINY", help="Two small layers, two requests, eager.")
    ] = False,
) -> None:
    """Check the tokens and time decode steps of ReMix on vLLM."""
    begin = time.monotonic()
    random.seed(0)
    torch.manual_seed(0)
    wanted = [found for found in check_modes.split(",") if found]
    config = llama_8b(layers=layers, vocab_size=VOCABULARY)
    if tiny:
        wanted, batches = ["eager" for _ in wanted], "1,2"
        mode = "none" if mode == "none" else "eager"
        config = small(VOCABULARY)
    gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    machine = {
        **describe_machine(),
        "gpu": gpu,
        "layers": config.num_hidden_layers,
        "mode": mode,
        "adapters": shape,
    }
    shown: list[str | Table] = []
    figures: dict[str, Any] = {"failures": []}
    with tempfile.TemporaryDirectory() as name:
        checks = {f"check {found}": check(Path(name) / found, found) for found in wanted}
        print(checks, flush=True)
        if mode != "none":
            base = Path(name) / "timed"
            numbers = [int(each) for each in batches.split(",")]
            timing = Timing(base, config, mode, AdapterShape.parse(shape), numbers)
            times = timing.rounds(seconds - (time.monotonic() - begin))
            table = timing.table(times)
            shown = [table, *(f"Failed: {each}" for each in timing.failures)]
            figures = {"seconds": {f"{case}": t for case, t in times.items()}}
            figures["failures"] = timing.failures
    title = "ReMix on vLLM, GPU"
    publish(out, title, fields(checks), *shown, machine=machine, checks=checks, **figures)
    for part in shown:
        if isinstance(part, Table):
            last = zip(part.header, part.rows[-1], strict=True)
            print(", ".join(f"{name}: {value}" for name, value in last))
    if figures["failures"]:
        raise SystemExit(f"error: {'; '.join(figures['failures'])}")


if __name__ == "__main__":
    typer.run(main)
