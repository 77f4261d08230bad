"""Speed of the CPU kernels alone: the packed linear layer and the ReMix addition.

`python -m benchmarks.speed.kernels [--threads 2] [--seconds 0.5]` gives, for the feed-forward
shapes of a 135M model, GB/s of weights and GFLOP/s of our linear layer, of PyTorch's and of oneDNN
with prepacked weights; our layer with weights of 16 and 8 bits against float32; and then what the
mixtures of four adapters (n 8, k 4, r 8) cost, as a share of the base layer's time, by the type of
the base. The calls walk through more weights than the caches hold and take turns;
the fastest walk of each counts.

Shape suffixes: T tokens, D input width, O output width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.options import Out
from benchmarks.result import Table, publish
from benchmarks.rounds import fastest
from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.kernels import Batch, MixtureWeights, cpu, native
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear
from remix_runtime.kernels.network import projection
from remix_runtime.kernels.panels import STORED_TYPES

SHAPES = ((576, 1536), (1536, 576))
"""(D, O)"""
TOKENS = (1, 4, 8, 32, 128, 512)
EXPERTS, TOP_K, RANK, ADAPTERS = 8, 4, 8, 4
COLD_BYTES = 100 << 20
"""More weights than a cache holds: every call finds its own in memory."""

Call = Callable[[int, Tensor], object]
"""(layer, x_TD)"""


def walks(calls: Sequence[Call], layers: int, x_TD: Tensor, seconds: float) -> list[float]:
    """Seconds of one call of each, in its fastest walk through the layers."""

    def walk(call: Call) -> None:
        for layer in range(layers):
            call(layer, x_TD)

    taken = fastest([partial(walk, call) for call in calls], seconds=seconds * len(calls))
    return [walk_seconds / layers for walk_seconds in taken]


def random_weights(D: int, out_features: int) -> list[Tensor]:
    layers = COLD_BYTES // (D * out_features * 4)
    return [torch.randn(out_features, D) / D**0.5 for _ in range(layers)]


def onednn(weights: Sequence[Tensor], tokens: int) -> Call:
    """PyTorch's own prepacked product, as torch.compile uses it when it freezes weights."""
    ops = torch.ops.mkldnn
    packed = [ops._reorder_linear_weight(w_OD, tokens) for w_OD in weights]
    return lambda i, x_TD: ops._linear_pointwise(x_TD, packed[i], None, "none", [], "")


def bench_linear(D: int, out_features: int, seconds: float) -> Iterator[list[object]]:
    weights = random_weights(D, out_features)
    ours = [PackedLinear(w_OD) for w_OD in weights]
    size = D * out_features
    for tokens in TOKENS:
        calls: list[Call] = [
            lambda i, x_TD: ours[i](x_TD),
            lambda i, x_TD: F.linear(x_TD, weights[i]),
            onednn(weights, tokens),
        ]
        taken = walks(calls, len(weights), torch.randn(tokens, D), seconds)
        cells = [
            f"{t * 1e6:.0f}, {size * 4 / t / 1e9:.1f}, {2 * tokens * size / t / 1e9:.0f}"
            for t in taken
        ]
        yield [f"{D} → {out_features}", tokens, *cells, *(f"{t / taken[0]:.2f}" for t in taken[1:])]


def in_every_type(weights: Sequence[Tensor]) -> dict[torch.dtype, list[PackedLinear]]:
    found = {kind: [PackedLinear(w_OD.to(kind)) for w_OD in weights] for kind in STORED_TYPES}
    return found | {torch.int8: [PackedLinear(w_OD, int8=True) for w_OD in weights]}


def bench_types(D: int, out_features: int, seconds: float) -> Iterator[list[object]]:
    by_type = in_every_type(random_weights(D, out_features))
    layers = by_type.pop(torch.float32)
    for tokens in TOKENS:
        sides = [layers, *by_type.values()]
        calls: list[Call] = [lambda i, x_TD, side=side: side[i](x_TD) for side in sides]  # type: ignore[misc]
        taken = walks(calls, len(layers), torch.randn(tokens, D), seconds)
        cells = [
            f"{t * 1e6:.0f}, {side[0].panels.nbytes / t / 1e9:.1f}, {taken[0] / t:.2f}"
            for t, side in zip(taken[1:], sides[1:], strict=True)
        ]
        yield [f"{D} → {out_features}", tokens, f"{taken[0] * 1e6:.0f}", *cells]


def make_table(D: int, out_features: int, *, short: bool) -> NativeMixtureTable:
    """A table of random adapters; `short` ones fit bfloat16."""

    def random(*shape: int) -> Tensor:
        values = torch.randn(shape)
        return values.bfloat16().float() if short else values

    table = NativeMixtureTable(ADAPTERS, D, out_features)
    n, k, r = EXPERTS, TOP_K, RANK
    for slot in range(ADAPTERS):
        layer = LayerWeights(random(n, r, D), random(n, out_features, r), random(n, D))
        table.set(slot, MixtureWeights.from_layer(layer, k, (k * r) ** -0.5))
    return table


def adapted(
    linears: Sequence[PackedLinear], tables: Sequence[NativeMixtureTable], batch: Batch
) -> Call:
    """Base and mixture in the one call that the engine's native networks make."""
    library = native.lib()
    assert library is not None
    function = library.remix_project
    function.argtypes = [
        *(ctypes.c_void_p, ctypes.c_int64) * 2,
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int),
    ]
    h_Tm, picks_Tk = batch.scratch(*tables[0].scratch_size)
    projections = [projection(*pair) for pair in zip(linears, tables, strict=True)]

    def call(i: int, x_TD: Tensor) -> Tensor:
        y_TO = torch.empty(len(x_TD), linears[i].out_features)
        function(
            ctypes.addressof(projections[i]),
            1,
            *(None, 0),
            batch.runs_address,
            len(batch.runs),
            x_TD.data_ptr(),
            (ctypes.c_void_p * 1)(y_TO.data_ptr()),
            len(x_TD),
            h_Tm.data_ptr(),
            picks_Tk.data_ptr(),
            h_Tm.shape[1],
            picks_Tk.shape[1],
            torch.get_num_threads(),
        )
        return y_TO

    return call


def bench_mixture(D: int, out_features: int, seconds: float) -> Iterator[list[object]]:
    by_base = in_every_type(random_weights(D, out_features))
    layers = len(by_base[torch.float32])
    by_type = [[make_table(D, out_features, short=s) for _ in range(layers)] for s in (False, True)]
    for tokens, (kind, linears) in product(TOKENS, by_base.items()):
        each = max(1, tokens // ADAPTERS)
        runs = [(i * each, (i + 1) * each, i) for i in range(min(ADAPTERS, tokens))]
        calls: list[Call] = [lambda i, x_TD, linears=linears: linears[i](x_TD)]  # type: ignore[misc]
        calls += [adapted(linears, tables, Batch(runs)) for tables in by_type]
        base, *others = walks(calls, layers, torch.randn(tokens, D), seconds)
        shares = [f"{100 * (t / base - 1):+.0f} %" for t in others]
        name = str(kind).removeprefix("torch.")
        yield [f"{D} → {out_features}", tokens, len(runs), name, f"{base * 1e6:.0f}", *shares]


def main(threads: int = torch.get_num_threads(), seconds: float = 0.5, out: Out = None) -> None:
    """Time the CPU kernels; `seconds` is the time for each figure."""
    if not cpu.available():
        raise SystemExit("error: no native kernels here; install a C compiler such as gcc")
    torch.set_num_threads(threads)
    with torch.inference_mode():
        linear = [row for shape in SHAPES for row in bench_linear(*shape, seconds)]
        types = [row for shape in SHAPES for row in bench_types(*shape, seconds)]
        mixture = [row for shape in SHAPES for row in bench_mixture(*shape, seconds)]
    header = ["D → O", "tokens", "ours: µs, GB/s, GFLOP/s", "F.linear", "oneDNN"]
    publish(
        out,
        "CPU kernels",
        f"{threads} threads.",
        Table([*header, "F.linear / ours", "oneDNN / ours"], linear),
        "Weights of other types: µs, GB/s, and the speed against float32's:",
        Table(["D → O", "tokens", "float32 µs", "bfloat16", "float16", "int8"], types),
        "What four adapters, float32 and bfloat16, add to a base of each type:",
        Table(
            ["D → O", "tokens", "adapters", "base", "base µs", "float32", "bfloat16"],
            mixture,
        ),
    )


if __name__ == "__main__":
    typer.run(main)
