"""ReMix on vLLM on a GPU: right tokens, CUDA graphs, and what a decode step costs.

    python -m benchmarks.vllm_gpu --out FOLDER [--layers 32] [--slots 32] [--mode graphs]

First a small model in float32: greedy tokens of three mixtures and the base, each alone, all in one
batch, and of the readable reference. Then random weights in the shape of Llama-3-8B, bf16, adapters
on the feed-forward linears: decode steps of an engine without adapters and of one with them, in
turns, at 1 and 32 requests with none, 1 and 32 adapters.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["VLLM_PLUGINS"] = ""  # ours is registered by hand: it may not be installed

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from benchmarks.adapters import AdapterShape, write_random_adapter
from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.base_model import without_weights
from remix_runtime.engines.vllm import plugin

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TARGETS = ("gate_proj", "up_proj", "down_proj")
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
PROMPT, NEW_TOKENS = 16, 64


def large(layers: int) -> LlamaConfig:
    return LlamaConfig(
        **COMMON,
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


def lora_options(shape: AdapterShape, slots: int) -> dict[str, Any]:
    rank = next(rank for rank in (8, 16, 32, 64, 128) if rank >= shape.n * shape.r)
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": slots,
        "max_lora_rank": rank,
        "lora_target_modules": ["gate_up_proj", "down_proj"],
    }


def write_adapter(config: LlamaConfig, folder: Path, shape: AdapterShape, seed: int = 0) -> str:
    write_random_adapter(folder, without_weights(config), shape, TARGETS, seed=seed)
    return str(folder)


def tokens(llm: LLM, jobs: Sequence[tuple[list[int], LoRARequest | None]]) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in jobs],
        params,
        lora_request=[lora for _, lora in jobs],
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def check(folder: Path, mode: str) -> dict[str, Any]:
    """Shares of tokens that agree, in float32: each request alone against all in one batch, and
    these against the readable reference."""
    model = AutoModelForCausalLM.from_config(SMALL, dtype=torch.float32)
    base = folder / "base"
    model.save_pretrained(base)
    shapes = [AdapterShape(8, 4, 8), AdapterShape(4, 2, 8), AdapterShape(1, 1, 16)]
    loras = [
        LoRARequest(f"a{i}", i + 1, write_adapter(SMALL, folder / f"a{i}", shape, seed=i))
        for i, shape in enumerate(shapes)
    ]
    options = lora_options(shapes[0], 3)
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
    reference = []
    for prompt, lora in jobs:
        network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if lora is not None:
            attach_checkpoint(network, read_checkpoint(Path(lora.lora_path)))
        with torch.inference_mode():
            out = network.to(DEVICE).generate(
                torch.tensor([prompt], device=DEVICE), max_new_tokens=24, do_sample=False,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        reference.append(out[0, len(prompt) :].tolist())
    texts = {tuple(t) for t in together}
    return {
        "sequences": len(jobs),
        "different": len(texts),
        "alone_is_together": agreement(alone, together),
        "together_is_reference": agreement(together, reference),
    }


def agreement(a: list[list[int]], b: list[list[int]]) -> float:
    pairs = [
        x == y for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True)
    ]
    return round(sum(pairs) / len(pairs), 4)


def step_seconds(llm: LLM, batch: int, loras: Sequence[LoRARequest | None]) -> float:
    """Median time of a decode step."""
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    core, first, times = llm.llm_engine, set[str](), list[float]()
    for number in range(batch):
        core.add_request(
            f"{time.monotonic_ns()}-{number}",
            {"prompt_token_ids": torch.randint(2, 32_000, (PROMPT,)).tolist()},
            params,
            lora_request=loras[number % len(loras)],
        )
    while core.has_unfinished_requests():
        torch.cuda.synchronize()
        started = time.perf_counter()
        found = {output.request_id for output in core.step()}
        torch.cuda.synchronize()
        if len(first) == batch:
            times.append(time.perf_counter() - started)
        first |= found
    return statistics.median(times[2:-2])


def measure(folder: Path, layers: int, mode: str, slots: int) -> list[dict[str, Any]]:
    config = large(layers)
    config.architectures = ["LlamaForCausalLM"]
    base = folder / "large"
    config.save_pretrained(base)
    plain = engine(base, mode, load_format="dummy")
    rows = []
    shape = AdapterShape(4, 2, 8)
    # One folder under many ids: every load has memory of its own, which is what costs.
    path = write_adapter(config, folder / "adapter", shape)
    loras = [LoRARequest(f"a{i}", i + 1, path) for i in range(slots)]
    remix = engine(base, mode, load_format="dummy", **lora_options(shape, slots))
    cases = [(1, loras[:1]), (32, loras), (32, loras[:1]), (32, [None]), (1, [None])]
    for batch, wanted in cases:
        step_seconds(remix, batch, wanted)  # warms up, fills the slots
        ratios, bases, founds = [], [], []
        for _ in range(2):
            bases.append(step_seconds(plain, batch, [None]))
            founds.append(step_seconds(remix, batch, wanted))
            ratios.append(founds[-1] / bases[-1])
        rows.append(
            {
                "requests": batch,
                "adapters": 0 if wanted == [None] else len(wanted),
                "base_ms": round(1e3 * statistics.median(bases), 3),
                "remix_ms": round(1e3 * statistics.median(founds), 3),
                "ratio": round(statistics.median(ratios), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--check", nargs="*", default=["eager", "compiled"])
    parser.add_argument("--mode", default="graphs", help="of the timed engines; none: no timing")
    args = parser.parse_args()
    plugin.register()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        result: dict[str, Any] = {
            "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
            "torch": torch.__version__,
            "vllm": plugin.installed_version(),
            "date": time.strftime("%Y-%m-%d"),
            "layers": args.layers,
        }
        for mode in args.check:
            result[f"check {mode}"] = check(Path(name) / mode, mode)
            print(json.dumps(result), flush=True)
        if args.mode != "none":
            result["mode"] = args.mode
            result["decode"] = measure(Path(name), args.layers, args.mode, args.slots)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "vllm_gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
