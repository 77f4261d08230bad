"""The ReMix addition: every backend against the equations, and the native one's bits.

Inputs and routers are small multiples of 1/8: their logits are exact in float32 in any order of
summation, so routes can be compared without near ties, and exact ties are frequent.

Shape suffixes as in `remix_runtime/kernels/mixture.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from remix_runtime import kernels
from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.kernels import (
    Batch,
    MixtureTable,
    MixtureWeights,
    reference,
)
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear
from remix_runtime.kernels.panels import STORED_TYPES
from remix_runtime.kernels.torch_path import TorchMixtureTable
from remix_runtime.kernels.triton_table import TritonMixtureTable
from tests.unit.kernels.projecting import Pair, project

Adapter = tuple[LayerWeights, int, float]
Runs = list[tuple[int, int, int]]

TableType = Callable[[int, int, int], MixtureTable]


def triton_table(num_slots: int, D: int, O: int) -> MixtureTable:  # noqa: E741
    return TritonMixtureTable(num_slots, D, [O], device="cpu", dtype=torch.float32)


BACKENDS = pytest.mark.parametrize(
    "table_type",
    [
        NativeMixtureTable,
        TorchMixtureTable,
        pytest.param(
            triton_table,
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has these"),
        ),
    ],
)


def eighths(*shape: int) -> Tensor:
    return torch.randint(-12, 13, shape) / 8


def make_adapter(n: int, k: int, r: int, D: int, O: int) -> Adapter:  # noqa: E741
    layer = LayerWeights(
        a_nrD=torch.randn(n, r, D), b_nOr=torch.randn(n, O, r), router_nD=eighths(n, D)
    )
    return layer, k, 2 / (k * r) ** 0.5


def make_table(
    table_type: TableType,
    adapters: Sequence[Adapter | None],
    D: int,
    O: int,  # noqa: E741
) -> MixtureTable:
    table = table_type(len(adapters), D, O)
    for slot, adapter in enumerate(adapters):
        if adapter is not None:
            table.set(slot, MixtureWeights.from_layer(*adapter))
    return table


def pad_routes(routes: list[list[int]], width: int) -> list[list[int]]:
    return [row + [-1] * (width - len(row)) for row in routes]


def run_lengths(lengths: Sequence[int], slots: Sequence[int]) -> Runs:
    ends = list(itertools.accumulate(lengths))
    return [(e - n, e, s) for e, n, s in zip(ends, lengths, slots, strict=True)]


def check(
    table: MixtureTable, adapters: Sequence[Adapter | None], runs: Runs, x_TD: Tensor
) -> None:
    width = max((a[1] for a in adapters if a), default=1)
    base_TO = torch.randn(len(x_TD), table.out_features)
    got_TO, want_TO = base_TO.clone(), base_TO.clone()
    routes_Tk = torch.full((len(x_TD), width), 99, dtype=torch.int32)
    table.add(got_TO, x_TD, Batch(runs), routes_Tk)
    routes = reference.add_mixture(want_TO, x_TD, runs, adapters)
    assert routes_Tk.tolist() == pad_routes(routes, width)
    largest_b = max(a[0].b_nOr.norm().item() for a in adapters if a) if any(adapters) else 1.0
    tolerance = 1e-6 * x_TD.norm(dim=1).max().item() * largest_b
    torch.testing.assert_close(got_TO, want_TO, atol=tolerance, rtol=1e-6)
    for t, row in enumerate(routes):
        assert row or torch.equal(got_TO[t], base_TO[t])  # base rows: untouched


@BACKENDS
@pytest.mark.parametrize(("n", "k", "r"), [(1, 1, 1), (2, 1, 3), (5, 2, 4), (8, 4, 8), (3, 3, 16)])
@pytest.mark.parametrize(("D", "O"), [(37, 50), (64, 128), (16, 65), (7, 1)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 40])
def test_one_adapter_agrees_with_the_equations(
    table_type: TableType,
    n: int,
    k: int,
    r: int,
    D: int,
    O: int,  # noqa: E741
    tokens: int,
) -> None:
    adapters = [make_adapter(n, k, r, D, O)]
    table = make_table(table_type, adapters, D, O)
    check(table, adapters, [(0, tokens, 0)], eighths(tokens, D))


@BACKENDS
@pytest.mark.parametrize(("D", "O"), [(37, 50), (192, 320)])
def test_adapters_of_all_shapes_and_base_rows_share_a_batch(
    table_type: TableType,
    D: int,
    O: int,  # noqa: E741
) -> None:
    shapes = [(8, 4, 8), (3, 1, 5), (1, 1, 2), (16, 2, 16)]
    adapters = [make_adapter(*shape, D, O) for shape in shapes] + [None]
    table = make_table(table_type, adapters, D, O)
    for lengths, slots in [
        ([1, 1, 1, 1, 1, 1], [0, 1, -1, 2, 3, 4]),
        ([7, 1, 12, 3, 2, 9], [3, -1, 0, 4, 2, 1]),
        ([2, 5, 1, 1, 30, 1], [-1, 2, 0, 0, 1, -1]),
    ]:
        check(table, adapters, run_lengths(lengths, slots), eighths(sum(lengths), D))


@BACKENDS
def test_equal_logits_go_to_the_lower_expert(table_type: TableType) -> None:
    D, width = 40, 24
    layer, k, weight = make_adapter(6, 3, 2, D, width)
    layer.router_nD[[1, 3, 4]] = layer.router_nD[1].clone()  # three equal rows, equal in all bits
    layer.router_nD[[0, 5]] = 0.0
    adapters = [(layer, k, weight)]
    table = make_table(table_type, adapters, D, width)
    x_TD = eighths(20, D)
    x_TD[4] = 0.0  # all logits equal
    routes_Tk = torch.empty(20, 3, dtype=torch.int32)
    table.add(torch.zeros(20, width), x_TD, Batch([(0, 20, 0)]), routes_Tk)
    assert routes_Tk[4].tolist() == [0, 1, 2]
    for row in routes_Tk.tolist():
        tied = [e for e in row if e in (1, 3, 4)]
        assert tied == [1, 3, 4][: len(tied)]
    check(table, adapters, [(0, 20, 0)], x_TD)


@BACKENDS
def test_massive_activations_route_by_logits(table_type: TableType) -> None:
    """Where a float32 softmax of the logits underflows to ties."""
    D, width = 64, 32
    adapters = [make_adapter(4, 2, 8, D, width)]
    x_TD = eighths(5, D)
    x_TD[:, 9] = 2403.0
    z_Tn = x_TD @ adapters[0][0].router_nD.T
    assert (z_Tn.softmax(-1) == 0).sum() >= 5  # the trap is there
    check(make_table(table_type, adapters, D, width), adapters, [(0, 5, 0)], x_TD)


@BACKENDS
def test_changed_and_cleared_slots(table_type: TableType) -> None:
    D, width = 48, 70
    first, second = make_adapter(2, 1, 4, D, width), make_adapter(9, 3, 6, D, width)
    table = make_table(table_type, [first, None], D, width)
    x_TD, batch = eighths(6, D), [(0, 3, 0), (3, 6, 1)]
    check(table, [first, None], batch, x_TD)
    table.set(1, MixtureWeights.from_layer(*second))
    check(table, [first, second], batch, x_TD)
    table.clear(0)
    check(table, [None, second], batch, x_TD)
    table.clear(1)
    check(table, [None, None], batch, x_TD)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, under Triton's interpreter
@BACKENDS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_breaks_no_other_row(table_type: TableType, bad: float) -> None:
    D, width = 37, 50
    table = make_table(table_type, [make_adapter(8, 4, 8, D, width)], D, width)
    x_TD = eighths(9, D)
    x_TD[4, 11] = bad
    y_TO = torch.zeros(9, width)
    routes_Tk = torch.empty(9, 4, dtype=torch.int32)
    table.add(y_TO, x_TD, Batch([(0, 9, 0)]), routes_Tk)
    assert not y_TO[4].isfinite().all()
    assert y_TO[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()
    assert (routes_Tk.diff(dim=1) > 0).all()
    if bad != bad:
        assert routes_Tk[4].tolist() == [0, 1, 2, 3]  # as `top_k_experts` of NaN logits


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    """Alone, at any place of any batch, and at any number of threads: with runs that are dealt
    out whole, and with such that are not."""
    D, width = 100, 200
    shapes = [(8, 4, 8), (5, 2, 3)]
    adapters = [make_adapter(*shape, D, width) for shape in shapes]
    table = make_table(NativeMixtureTable, adapters, D, width)
    x_TD, base_TO = eighths(41, D), torch.randn(41, width)
    for slot in range(2):
        alone_TO = base_TO.clone()
        for t in range(41):
            table.add(alone_TO[t : t + 1], x_TD[t : t + 1], Batch([(0, 1, slot)]))
        for lengths in [[41], [2, 39], [1, 1, 39], [10, 3, 28], [20, 2, 19], [13, 14, 14]]:
            slots = [slot] * len(lengths)
            for threads in (1, 2, 3):
                got_TO = base_TO.clone()
                _with_threads(threads, table, got_TO, x_TD, Batch(run_lengths(lengths, slots)))
                assert torch.equal(got_TO, alone_TO)
        mixed_TO = base_TO.clone()
        runs = run_lengths([5, 9, 1, 26], [1 - slot, slot, -1, slot])
        _with_threads(2, table, mixed_TO, x_TD, Batch(runs))
        assert torch.equal(mixed_TO[5:14], alone_TO[5:14])
        assert torch.equal(mixed_TO[15:], alone_TO[15:])
        ended_TO = base_TO.clone()
        _with_threads(2, table, ended_TO, x_TD, Batch(run_lengths([19, 18, 4], [slot, slot, -1])))
        assert torch.equal(ended_TO[:37], alone_TO[:37])
        assert torch.equal(ended_TO[37:], base_TO[37:])


def _with_threads(
    threads: int, table: MixtureTable, y_TO: Tensor, x_TD: Tensor, batch: Batch
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        table.add(y_TO, x_TD, batch)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [*STORED_TYPES, torch.int8])
@pytest.mark.parametrize("threads", [1, 2])
def test_fetching_weights_during_the_base_product_changes_no_bit(
    threads: int, dtype: torch.dtype
) -> None:
    """`remix_project`, which native networks use, against its halves: three projections beside each
    other, of which one has no adapters, and one whose router is fetched on the way."""
    D, widths = 100, (330, 90, 330)
    pairs: list[Pair] = []
    for number, width in enumerate(widths):
        adapters = [make_adapter(8, 4, 8, D, width), make_adapter(5, 2, 3, D, width)]
        table = NativeMixtureTable(2, D, width)
        for slot, adapter in enumerate(adapters if number != 1 else []):
            table.set(slot, MixtureWeights.from_layer(*adapter))
        weight_OD, int8 = torch.randn(width, D), dtype == torch.int8
        stored_OD = weight_OD if int8 else weight_OD.to(dtype)
        pairs.append((PackedLinear(stored_OD, torch.randn(width), int8=int8), table))
    for lengths in ([1], [7, 1, 8], [5, 1, 5], [20, 1, 30], [90, 1, 37], [130, 1, 60]):
        tokens, batch = sum(lengths), Batch(run_lengths(lengths, [0, -1, 1][: len(lengths)]))
        x_TD = torch.randn(tokens, D)
        for some in (pairs[:1], pairs[1:2], pairs):
            outputs, routes = project(some, x_TD, batch, threads, following=pairs[:1])
            for (linear, table), got_TO, got_Tk in zip(some, outputs, routes, strict=True):
                want_TO = linear(x_TD)
                want_Tk = torch.full((tokens, got_Tk.shape[1]), -1, dtype=torch.int32)
                table.add(want_TO, x_TD, batch, want_Tk)
                assert torch.equal(got_TO, want_TO)
                assert torch.equal(got_Tk, want_Tk)


@pytest.mark.parametrize(("n", "k", "r", "D", "O"), [(8, 4, 8, 64, 128), (5, 2, 3, 37, 50)])
def test_weights_that_fit_bfloat16_are_stored_so_and_give_the_same_bits(
    n: int,
    k: int,
    r: int,
    D: int,
    O: int,  # noqa: E741
) -> None:
    layer, k, weight = make_adapter(n, k, r, D, O)
    layer = LayerWeights(
        a_nrD=layer.a_nrD.bfloat16().float(),
        b_nOr=layer.b_nOr.bfloat16().float(),
        router_nD=layer.router_nD,
    )
    short = MixtureWeights.from_layer(layer, k, weight)
    assert short.a.dtype == short.b.dtype == torch.bfloat16
    # The same adapter with one more expert, never selected, that does not fit bfloat16.
    odd_1rD = torch.full((1, r, D), 1.0001)
    router_1D = torch.zeros(1, D)
    router_1D[0, 0] = -1000.0
    more = LayerWeights(
        a_nrD=torch.cat([layer.a_nrD, odd_1rD]),
        b_nOr=torch.cat([layer.b_nOr, torch.randn(1, O, r)]),
        router_nD=torch.cat([layer.router_nD, router_1D]),
    )
    long = MixtureWeights.from_layer(more, k, weight)
    assert long.a.dtype == torch.float32
    for tokens in (1, 2, 7, 33):
        x_TD, y_TO = eighths(tokens, D), torch.randn(tokens, O)
        x_TD[:, 0] = 1.0
        tables = NativeMixtureTable(1, D, O), NativeMixtureTable(1, D, O)
        outputs, routes = [], []
        for table, weights in zip(tables, (short, long), strict=True):
            table.set(0, weights)
            outputs.append(y_TO.clone())
            routes.append(torch.empty(tokens, k, dtype=torch.int32))
            table.add(outputs[-1], x_TD, Batch([(0, tokens, 0)]), routes[-1])
        assert torch.equal(*routes)
        assert torch.equal(*outputs)
    check(tables[0], [(layer, k, weight)], [(0, 33, 0)], x_TD)
    a_mD, b_jO = short.plain()
    assert torch.equal(a_mD, torch.cat([layer.a_nrD.flatten(0, 1), layer.router_nD]))
    assert torch.equal(b_jO, layer.b_nOr.transpose(1, 2).flatten(0, 1))
    torch_table = make_table(TorchMixtureTable, [(layer, k, weight)], D, O)
    check(torch_table, [(layer, k, weight)], [(0, 33, 0)], x_TD)


def test_bfloat16_inputs_take_the_pytorch_path() -> None:
    layer, k, weight = make_adapter(4, 2, 4, 32, 48)
    x_TD = eighths(6, 32)
    y_TO = torch.zeros(6, 48, dtype=torch.bfloat16)
    routes_Tk = torch.empty(6, 2, dtype=torch.int32)
    weights = MixtureWeights.from_layer(layer, k, weight)
    table = kernels.make_table(1, 32, 48, dtype=torch.bfloat16)
    table.set(0, weights)
    table.add(y_TO, x_TD.bfloat16(), Batch([(0, 6, 0)]), routes_Tk)
    want_TO = torch.zeros(6, 48)
    routes = reference.add_mixture(
        want_TO, x_TD.bfloat16().float(), [(0, 6, 0)], [(layer, k, weight)]
    )
    assert routes_Tk.tolist() == routes
    torch.testing.assert_close(y_TO.float(), want_TO, atol=0.05, rtol=0.02)
