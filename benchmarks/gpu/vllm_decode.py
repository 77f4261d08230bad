"""ReMix on vLLM on a GPU: right tokens, CUDA graphs, and what a decode step costs.

    python -m benchmarks.gpu.vllm_decode --out STEM [--layers 32] [--slots 32] [--mode graphs]

First a small model in float32: greedy tokens of three mixtures and the base, each alone, all in one
batch, and of the readable reference. Then random weights in the shape of Llama-3-8B, bf16, adapters
on the feed-forward linears: decode steps of an engine without adapters and of one with them, in
turns, at 1 and 32 requests with none, 1 and 32 adapters.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from benchmarks.vllm_engines import Adapters, lora_options, named, submit  # isort: skip

import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from benchmarks.adapters import write_random_adapters
from benchmarks.agreement import agreement
from benchmarks.machine import describe_machine
from benchmarks.result import fields, table, write_result
from benchmarks.rounds import ratio, run_rounds
from benchmarks.shape import AdapterShape
from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.engines.vllm import plugin

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMMON = {"vocab_size": 32_000, "max_position_embeddings": 2048, "bos_token_id": 1}
SMALL = LlamaConfig(
    **COMMON,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.06,
)
CHECKED = (AdapterShape(8, 4, 8), AdapterShape(4, 2, 8), AdapterShape(1, 1, 16))
TIMED = AdapterShape(4, 2, 8)
PROMPT, NEW_TOKENS, CHECKED_TOKENS = 16, 64, 24
ROUNDS = 2


def large(layers: int) -> LlamaConfig:
    return LlamaConfig(
        **COMMON,
        architectures=["LlamaForCausalLM"],
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


def engine(folder: Path, mode: str, **options: Any) -> LLM:
    """`compiled` is vLLM's default; `graphs` are CUDA graphs of what PyTorch would run."""
    if mode == "graphs":
        options["compilation_config"] = {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 8, 32],
        }
    return LLM(
        str(folder),
        skip_tokenizer_init=True,
        max_model_len=1024,
        max_num_seqs=32,
        enforce_eager=mode == "eager",
        **{"gpu_memory_utilization": 0.4, "dtype": "bfloat16", **options},
    )


def tokens(llm: LLM, jobs: Sequence[tuple[list[int], LoRARequest | None]]) -> list[list[int]]:
    params = SamplingParams(
        temperature=0, max_tokens=CHECKED_TOKENS, ignore_eos=True, detokenize=False
    )
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in jobs],
        params,
        lora_request=[lora for _, lora in jobs],
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def reference(base: Path, prompt: list[int], lora: LoRARequest | None) -> list[int]:
    """Greedy tokens of the readable model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if lora is not None:
        attach_checkpoint(model, read_checkpoint(Path(lora.lora_path)))
    with torch.inference_mode():
        out_1T = model.to(DEVICE).generate(
            torch.tensor([prompt], device=DEVICE),
            max_new_tokens=CHECKED_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return list(out_1T[0, len(prompt) :].tolist())


def check(folder: Path, mode: str) -> dict[str, Any]:
    """Shares of tokens that agree up to the first difference, in float32: each request alone
    against all in one batch, and these against the readable reference."""
    base = folder / "base"
    AutoModelForCausalLM.from_config(SMALL, dtype=torch.float32).save_pretrained(base)
    loras = named(
        [write_random_adapters(folder / str(shape), base, shape, 1)[0] for shape in CHECKED]
    )
    options = lora_options(max(shape.n * shape.r for shape in CHECKED), slots=3, cpu_slots=3)
    if DEVICE == "cuda":
        options["attention_backend"] = "TRITON_ATTN"  # the one that takes float32
    llm = engine(base, mode, dtype="float32", gpu_memory_utilization=0.1, **options)
    jobs = [
        (torch.randint(2, 32_000, (length,)).tolist(), lora)
        for lora in (*loras, None)
        for length in (1, 17, 90)
    ]
    together = tokens(llm, jobs)
    alone = [tokens(llm, [job])[0] for job in jobs]
    references = [reference(base, *job) for job in jobs]
    return {
        "sequences": len(jobs),
        "different": len({tuple(output) for output in together}),
        "alone_is_together": round(agreement(alone, together), 4),
        "together_is_reference": round(agreement(together, references), 4),
    }


def step_seconds(llm: LLM, batch: int, adapters: Adapters, number: int) -> float:
    """Median time of a decode step."""
    core, first, times = submit(llm, batch, PROMPT, NEW_TOKENS, adapters), set[str](), list[float]()
    while core.has_unfinished_requests():
        torch.cuda.synchronize()
        started = time.perf_counter()
        found = {output.request_id for output in core.step()}
        torch.cuda.synchronize()
        if len(first) == batch:
            times.append(time.perf_counter() - started)
        first |= found
    return statistics.median(times[2:-2])


def measure(folder: Path, layers: int, mode: str, slots: int) -> list[list[object]]:
    """Requests, adapters, milliseconds without and with ReMix, ratio; by case."""
    base = folder / "large"
    large(layers).save_pretrained(base)
    plain = engine(base, mode, load_format="dummy")
    # One folder under many ids: every load has memory of its own, which is what costs.
    loras = named(write_random_adapters(folder, base, TIMED, 1) * slots)
    options = lora_options(TIMED.n * TIMED.r, slots, cpu_slots=slots)
    remix = engine(base, mode, load_format="dummy", **options)
    cases: dict[tuple[int, int], Adapters] = {
        (1, 1): loras[:1],
        (32, slots): loras,
        (32, 1): loras[:1],
        (32, 0): [None],
        (1, 0): [None],
    }
    sides = {
        (batch, count): {
            "base": partial(step_seconds, plain, batch, [None]),
            "remix": partial(step_seconds, remix, batch, adapters),
        }
        for (batch, count), adapters in cases.items()
    }
    rows: list[list[object]] = []
    # The warm-up fills the slots, too.
    for (batch, count), found in run_rounds(sides, rounds=ROUNDS, warm_up=1).items():
        times = [1e3 * statistics.median(found[side].values()) for side in ("base", "remix")]
        ratios = ratio(found["remix"], found["base"])
        assert ratios is not None
        rows.append([batch, count, *(round(t, 3) for t in times), round(ratios.median, 3)])
    return rows


def main(
    out: Annotated[Path, typer.Option(help="Result path without ending.")],
    layers: int = 32,
    slots: int = 32,
    checks: Annotated[
        str, typer.Option(help="Modes whose tokens are compared.")
    ] = "eager,compiled",
    mode: Annotated[str, typer.Option(help="Of the timed engines; none: no timing.")] = "graphs",
) -> None:
    """Check the tokens and time decode steps of ReMix on vLLM."""
    plugin.register()
    torch.manual_seed(0)
    gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    machine = {**describe_machine(), "gpu": gpu, "layers": layers, "mode": mode}
    with tempfile.TemporaryDirectory() as name:
        checked = {
            f"check {found}": check(Path(name) / found, found)
            for found in filter(None, checks.split(","))
        }
        print(checked, flush=True)
        rows = [] if mode == "none" else measure(Path(name), layers, mode, slots)
    decode = table(["requests", "adapters", "base ms", "ReMix ms", "ratio"], rows)
    parts = [fields(checked), decode]
    print(write_result(out, "ReMix on vLLM, GPU", parts, machine, {**checked, "decode": rows}))


if __name__ == "__main__":
    typer.run(main)
