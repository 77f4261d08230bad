"""ReMix on vLLM on a GPU: right tokens, CUDA graphs, and what a decode step costs.

    python -m benchmarks.gpu.vllm_decode --out STEM [--layers 32] [--slots 32] [--mode graphs]

First a small model in float32: greedy tokens of three mixtures and the base, each alone, all in one
batch, and of the readable reference. Then random weights in the shape of Llama-3-8B, bf16, adapters
on the feed-forward linears: decode steps of an engine without adapters and of one with them, in
turns, at 1 and 32 requests with none, 1 and 32 adapters.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.adapters import write_random_adapters
from benchmarks.agreement import agreement
from benchmarks.machine import describe_machine
from benchmarks.result import Table, fields, publish
from benchmarks.rounds import ratio, run_rounds
from benchmarks.shape import AdapterShape
from benchmarks.speed.plan import random_workload
from benchmarks.speed.systems.protocol import Workload
from benchmarks.speed.worker import Worker
from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCABULARY = 32_000
COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": 2048, "bos_token_id": 1}
CHECKED = (AdapterShape(8, 4, 8), AdapterShape(4, 2, 8), AdapterShape(1, 1, 16))
CHECKED_TOKENS = 24
TIMED = AdapterShape(4, 2, 8)
ROUNDS = 2


def small() -> LlamaConfig:
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**COMMON, **sizes, **heads, initializer_range=0.06)


def large(layers: int) -> LlamaConfig:
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    return LlamaConfig(**COMMON, **sizes, **heads, architectures=["LlamaForCausalLM"])


def start(base: Path, mode: str, adapters: Sequence[Path], rank: int, **engine: Any) -> Worker:
    """`compiled` is vLLM's default; `graphs` are CUDA graphs of what PyTorch would run."""
    if mode == "graphs":
        engine["compilation_config"] = {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 8, 32],
        }
    engine |= {"skip_tokenizer_init": True, "max_model_len": 1024, "max_num_seqs": 32}
    options = {
        "model": str(base),
        "engine": {**engine, "enforce_eager": mode == "eager"},
        "adapters": [str(folder) for folder in adapters],
        "lora_rank": rank,
        "lora_slots": len(adapters),
        "remix": bool(adapters),
    }
    target = "benchmarks.speed.systems.vllm:VllmSystem"
    log = base / f"vllm-{len(adapters)}.log"
    # The plugin is registered by hand: it may not be installed.
    return Worker(mode, target, options, log=log, threads=8, env={"VLLM_PLUGINS": ""})


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
    engine = {"dtype": "float32", "gpu_memory_utilization": 0.1, **attention}
    jobs = [
        (random.choices(range(2, VOCABULARY), k=length), adapter)
        for adapter in (*range(len(adapters)), None)
        for length in (1, 17, 90)
    ]
    with closing(start(base, mode, adapters, rank, **engine)) as worker:

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


def measure(base: Path, layers: int, mode: str, slots: int) -> list[list[object]]:
    """Requests, adapters, milliseconds without and with ReMix, ratio; by case."""
    large(layers).save_pretrained(base)
    # One folder under many ids: every load has memory of its own, which is what costs.
    adapters = write_random_adapters(base.parent, base, TIMED, 1) * slots
    engine = {"dtype": "bfloat16", "gpu_memory_utilization": 0.4, "load_format": "dummy"}
    cases: dict[tuple[int, int], Sequence[int | None]] = {
        (1, 1): [0],
        (32, slots): range(slots),
        (32, 1): [0],
        (32, 0): [None],
        (1, 0): [None],
    }
    with (
        closing(start(base, mode, [], 0, **engine)) as plain,
        closing(start(base, mode, adapters, TIMED.n * TIMED.r, **engine)) as remix,
    ):
        sides = {
            (batch, count): {
                "base": partial(step_seconds, plain, batch, [None]),
                "remix": partial(step_seconds, remix, batch, chosen),
            }
            for (batch, count), chosen in cases.items()
        }
        # The warm-up fills the slots, too.
        found = run_rounds(sides, rounds=ROUNDS, warm_up=1)
    rows: list[list[object]] = []
    for case, times in found.items():
        sides_ms = (1e3 * statistics.median(times[side].values()) for side in ("base", "remix"))
        ratios = ratio(times["remix"], times["base"])
        assert ratios is not None
        rows.append([*case, *(round(ms, 3) for ms in sides_ms), round(ratios.median, 3)])
    return rows


def main(
    out: Annotated[Path, typer.Option(help="Result path without ending.")],
    layers: int = 32,
    slots: int = 32,
    check_modes: Annotated[str, typer.Option(help="Whose tokens are compared.")] = "eager,compiled",
    mode: Annotated[str, typer.Option(help="Of the timed engines; none: no timing.")] = "graphs",
) -> None:
    """Check the tokens and time decode steps of ReMix on vLLM."""
    random.seed(0)
    torch.manual_seed(0)
    gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    machine = {**describe_machine(), "gpu": gpu, "layers": layers, "mode": mode}
    with tempfile.TemporaryDirectory() as name:
        wanted = [found for found in check_modes.split(",") if found]
        checks = {f"check {found}": check(Path(name) / found, found) for found in wanted}
        print(checks, flush=True)
        rows = [] if mode == "none" else measure(Path(name) / "large", layers, mode, slots)
    decode = Table(["requests", "adapters", "base ms", "ReMix ms", "ratio"], rows)
    publish(out, "ReMix on vLLM, GPU", fields(checks), decode, machine=machine, checks=checks)


if __name__ == "__main__":
    typer.run(main)
