"""Speed of the CPU kernels alone: the packed linear layer and the ReMix addition.

`python -m benchmarks.kernels [--threads 2] [--seconds 0.5]` prints, for the feed-forward shapes
of a 135M model, GB/s of weights and GFLOP/s of our linear layer, of PyTorch's and of oneDNN with
prepacked weights, and then what the mixtures of four adapters (n 8, k 4, r 8) cost, as a share of
the base layer's time. The calls walk through more weights than the caches hold, take turns call
by call, and each one's fastest tenth ends at the printed time, so other load matters little.

Shape suffixes: T tokens, D input width, O output width.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.kernels import Batch, MixtureWeights, cpu, native
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear

SHAPES = ((576, 1536), (1536, 576))
"""(D, O)"""
TOKENS = (1, 4, 8, 32, 128, 512)
EXPERTS, TOP_K, RANK, ADAPTERS = 8, 4, 8, 4
COLD_BYTES = 100 << 20
"""More weights than a cache holds: every call finds its own in memory."""

Call = Callable[[int, Tensor], object]
"""(layer, x_TD)"""


def times(calls: Sequence[Call], layers: int, x_TD: Tensor, seconds: float) -> list[float]:
    """Seconds of one call of each, the end of its fastest tenth."""
    found: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or not found[0]:
        for call, taken in zip(calls, found, strict=True):
            for layer in range(layers):
                start = time.perf_counter()
                call(layer, x_TD)
                taken.append(time.perf_counter() - start)
    return [sorted(taken)[len(taken) // 10] for taken in found]


def onednn(weights: Sequence[Tensor], tokens: int) -> Call:
    """PyTorch's own prepacked product, as torch.compile uses it when it freezes weights."""
    ops = torch.ops.mkldnn
    packed = [ops._reorder_linear_weight(w_OD, tokens) for w_OD in weights]
    return lambda i, x_TD: ops._linear_pointwise(x_TD, packed[i], None, "none", [], "")


def bench_linear(D: int, out_features: int, seconds: float) -> None:
    layers = COLD_BYTES // (D * out_features * 4)
    weights = [torch.randn(out_features, D) / D**0.5 for _ in range(layers)]
    ours = [PackedLinear(w_OD) for w_OD in weights]
    print(f"linear D={D} O={out_features}: µs, GB/s, GFLOP/s; times faster than the others")
    for tokens in TOKENS:
        calls: list[Call] = [
            lambda i, x_TD: ours[i](x_TD),
            lambda i, x_TD: F.linear(x_TD, weights[i]),
            onednn(weights, tokens),
        ]
        taken = times(calls, layers, torch.randn(tokens, D), seconds)
        row = "".join(
            f"{t * 1e6:9.0f} {D * out_features * 4 / t / 1e9:5.1f} "
            f"{2 * tokens * D * out_features / t / 1e9:5.0f} |"
            for t in taken
        )
        print(f"  T={tokens:<4}{row} F.linear {taken[1] / taken[0]:.2f}x "
              f"oneDNN {taken[2] / taken[0]:.2f}x", flush=True)  # fmt: skip


def make_tables(layers: int, D: int, out_features: int, *, short: bool) -> list[NativeMixtureTable]:
    """Tables of random adapters; `short` ones fit bfloat16."""

    def random(*shape: int) -> Tensor:
        values = torch.randn(shape)
        return values.bfloat16().float() if short else values

    tables = []
    for _ in range(layers):
        table = NativeMixtureTable(ADAPTERS, D, out_features)
        for slot in range(ADAPTERS):
            layer = LayerWeights(
                a_nrD=random(EXPERTS, RANK, D),
                b_nOr=random(EXPERTS, out_features, RANK),
                router_nD=random(EXPERTS, D),
            )
            table.set(slot, MixtureWeights.from_layer(layer, TOP_K, (TOP_K * RANK) ** -0.5))
        tables.append(table)
    return tables


def adapted(
    linears: Sequence[PackedLinear], tables: Sequence[NativeMixtureTable], batch: Batch
) -> Call:
    """Base and mixture in the one call that the engine's native blocks make."""
    library = native.lib()
    assert library is not None
    function = library.remix_adapted_linear
    function.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int64] * 6 + [ctypes.c_int]
    h_Tm, picks_Tk = batch.scratch(*tables[0].scratch_size)

    def call(i: int, x_TD: Tensor) -> Tensor:
        linear = linears[i]
        y_TO = torch.empty(len(x_TD), linear.out_features)
        tensors = (batch.runs_R3, x_TD, y_TO, h_Tm, picks_Tk)
        sizes = (len(batch.runs), *x_TD.shape, linear.out_features)
        function(
            *linear.native_addresses,
            tables[i].native_address,
            *(tensor.data_ptr() for tensor in tensors),
            *sizes,
            h_Tm.shape[1],
            picks_Tk.shape[1],
            torch.get_num_threads(),
        )
        return y_TO

    return call


def bench_mixture(D: int, out_features: int, seconds: float) -> None:
    layers = COLD_BYTES // (D * out_features * 4)
    linears = [PackedLinear(torch.randn(out_features, D) / D**0.5) for _ in range(layers)]
    tables = {
        name: make_tables(layers, D, out_features, short=short)
        for name, short in (("float32", False), ("bfloat16", True))
    }
    print(f"mixture D={D} O={out_features}: base µs, and what four adapters add to it")
    for tokens in TOKENS:
        each = max(1, tokens // ADAPTERS)
        runs = [(i * each, (i + 1) * each, i) for i in range(min(ADAPTERS, tokens))]
        calls: list[Call] = [lambda i, x_TD: linears[i](x_TD)]
        calls += [adapted(linears, tables[name], Batch(runs)) for name in tables]
        base, *others = times(calls, layers, torch.randn(tokens, D), seconds)
        shares = "  ".join(
            f"{name} {100 * (t / base - 1):+.0f} %" for name, t in zip(tables, others, strict=True)
        )
        print(f"  T={tokens:<4} {len(runs)} adapters {base * 1e6:9.0f}  {shares}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure")
    arguments = parser.parse_args()
    if not cpu.available():
        raise SystemExit("error: no native kernels here; install a C compiler such as gcc")
    torch.set_num_threads(arguments.threads)
    print(f"{torch.get_num_threads()} threads")
    with torch.inference_mode():
        for shape in SHAPES:
            bench_linear(*shape, arguments.seconds)
        for shape in SHAPES:
            bench_mixture(*shape, arguments.seconds)


if __name__ == "__main__":
    main()
