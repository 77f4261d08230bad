"""Paged attention against PyTorch's SDPA on contiguous tensors, in one run.

    python -m benchmarks.speed.attention [--threads 2]

SDPA gets keys and values that already lie in one padded tensor; ours also stores the new ones.
Calls walk over as many layers as 256 MB hold, so that decode reads from memory and not from the
cache. Sides take turns and the fastest turn of each counts, as other load only slows down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch
import torch.nn.functional as F
import typer

from benchmarks.options import Out
from benchmarks.result import Table, publish
from benchmarks.rounds import fastest
from remix_runtime.kernels.attention import PAGE_TOKENS, AttentionBatch, PagedKV


@dataclass(frozen=True)
class Workload:
    """`rows` new tokens of each of `sequences`, behind `context` stored ones."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    sequences: int
    rows: int
    context: int

    @property
    def layers(self) -> int:
        keys = self.sequences * (self.context + self.rows) * self.kv_heads
        return min(30, max(1, 256_000_000 // (8 * keys * self.head_dim)))


# SmolLM2-135M has 9 / 3 heads of 64, Llama 3 8B has 32 / 8 of 128.
WORKLOADS = [
    Workload("decode", 9, 3, 64, 1, 1, 64),
    Workload("decode", 9, 3, 64, 1, 1, 300),
    Workload("decode", 9, 3, 64, 1, 1, 4000),
    Workload("decode", 9, 3, 64, 32, 1, 300),
    Workload("decode", 32, 8, 128, 8, 1, 2000),
    Workload("prefill", 9, 3, 64, 1, 512, 0),
    Workload("prefill", 9, 3, 64, 4, 128, 0),
    Workload("chunk", 9, 3, 64, 1, 256, 1000),
    Workload("prefill", 32, 8, 128, 1, 512, 0),
]


def paged(load: Workload) -> Callable[[], None]:
    S, n, length = load.sequences, load.rows, load.context + load.rows
    pages = -(-length // PAGE_TOKENS)
    shape = load.kv_heads, load.head_dim
    kv = PagedKV(load.layers, S * pages, *shape, torch.float32, "cpu")
    pages_SP = torch.randperm(S * pages).view(S, pages).tolist()
    k_TGd, v_TGd = torch.randn(2, S * load.context + S, *shape).unbind()
    q_THd = torch.randn(len(k_TGd), load.heads, load.head_dim)
    if load.context:
        first = [s * load.context for s in range(S)]
        fill = AttentionBatch(first, [load.context] * S, [0] * S, pages_SP)
        for layer in range(load.layers):
            kv.attend(layer, q_THd, k_TGd, v_TGd, fill, scale=0.1)
    q_THd = torch.randn(S * n, load.heads, load.head_dim)
    k_TGd, v_TGd = torch.randn(2, S * n, *shape).unbind()
    batch = AttentionBatch([s * n for s in range(S)], [n] * S, [load.context] * S, pages_SP)
    scale = load.head_dim**-0.5

    def step() -> None:
        for layer in range(load.layers):
            kv.attend(layer, q_THd, k_TGd, v_TGd, batch, scale=scale)

    return step


def sdpa(load: Workload) -> Callable[[], None]:
    S, n, length = load.sequences, load.rows, load.context + load.rows
    q_SHnd = torch.randn(S, load.heads, n, load.head_dim)
    shape = load.layers, S, load.kv_heads, length, load.head_dim
    k_layers, v_layers = torch.randn(shape), torch.randn(shape)
    causal = n > 1 and not load.context
    mask_nL = None
    if n > 1 and load.context:
        mask_nL = torch.ones(n, length, dtype=torch.bool).tril(load.context)

    def step() -> None:
        for k_SGLd, v_SGLd in zip(k_layers, v_layers, strict=True):
            F.scaled_dot_product_attention(
                q_SHnd, k_SGLd, v_SGLd, attn_mask=mask_nL, is_causal=causal, enable_gqa=True
            )

    return step


def main(threads: int = torch.get_num_threads(), seconds: float = 1.5, out: Out = None) -> None:
    """Time paged attention against SDPA; `seconds` is the time for each workload."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows: list[list[object]] = []
    with torch.inference_mode():
        for load in WORKLOADS:
            turns = fastest([paged(load), sdpa(load)], seconds=seconds)
            ours, theirs = (taken / load.layers for taken in turns)
            keys = load.sequences * (load.context + load.rows)
            pairs = load.sequences * load.rows * (load.context + (load.rows + 1) / 2)
            flops = 4 * pairs * load.heads * load.head_dim
            read = 8 * keys * load.kv_heads * load.head_dim
            times = (f"{1e6 * ours:.0f}", f"{1e6 * theirs:.0f}", f"{theirs / ours:.2f}")
            rates = (f"{flops / ours / 1e9:.0f}", f"{read / ours / 1e9:.1f}")
            rows.append([*astuple(load), *times, *rates])
    header = ["", "H", "G", "d", "sequences", "new", "context", "paged µs", "SDPA µs", "ratio"]
    publish(
        out,
        "Paged attention",
        f"{threads} threads, {torch.backends.cpu.get_cpu_capability()}.",
        Table([*header, "GFLOP/s", "GB/s"], rows),
    )


if __name__ == "__main__":
    typer.run(main)
