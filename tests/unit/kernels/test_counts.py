"""Activations of experts are counted as the routes of the same call say.

Shape suffixes as in `remix_runtime/kernels/mixture.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.kernels import Batch, MixtureTable, MixtureWeights
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear
from remix_runtime.kernels.torch_path import TorchMixtureTable
from tests.unit.kernels.projecting import project

Runs = list[tuple[int, int, int]]

SHAPES = ((8, 4, 8), (3, 1, 5), (1, 1, 2), (16, 2, 4), (5, 5, 3))
"""(n, k, r) of the adapter in each slot; one more slot is empty. (1, 1, r) is a plain LoRA."""
RUNS = (
    ([1], [0]),
    ([1, 1, 1, 1, 1, 1], [0, 1, -1, 2, 3, 5]),
    ([7, 2, 3, 1, 12], [4, -1, 1, 5, 0]),
    ([20, 20], [0, 3]),
    ([1, 40, 2], [3, 0, 2]),
    ([9, 11, 1, 30], [0, 1, -1, 0]),
    ([300, 3], [4, 0]),
)
"""Lengths and slots: equal works for two threads, unequal ones, and a slot with two runs."""


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random_weights(n: int, k: int, r: int, D: int, O: int) -> MixtureWeights:  # noqa: E741
    layer = LayerWeights(torch.randn(n, r, D), torch.randn(n, O, r), torch.randn(n, D))
    return MixtureWeights.from_layer(layer, k, 0.1)


def fill(table: MixtureTable) -> list[Tensor]:
    """Random adapters in the table's slots. Returns their counters."""
    counts = [torch.zeros(n, dtype=torch.int64) for n, _, _ in SHAPES]
    for slot, (shape, counts_n) in enumerate(zip(SHAPES, counts, strict=True)):
        weights = random_weights(*shape, table.in_features, table.out_features)
        table.set(slot, weights.counting(counts_n))
    return counts


def run_lengths(lengths: Sequence[int], slots: Sequence[int]) -> Runs:
    ends = list(itertools.accumulate(lengths))
    return [(e - n, e, s) for e, n, s in zip(ends, lengths, slots, strict=True)]


def add(
    table: MixtureTable, y_TO: Tensor, x_TD: Tensor, batch: Batch, routes_Tk: Tensor | None = None
) -> None:
    """A step of one layer."""
    table.add(y_TO, x_TD, batch, routes_Tk)
    batch.count()


def counted(routes_Tk: Tensor, runs: Runs) -> list[list[int]]:
    """The counts of each slot's experts by the routes."""
    counts = [[0] * n for n, _, _ in SHAPES]
    for start, end, slot in runs:
        for row in routes_Tk[start:end].tolist():
            for expert in row:
                if expert >= 0:
                    counts[slot][expert] += 1
    return counts


@pytest.mark.parametrize("table_type", [NativeMixtureTable, TorchMixtureTable])
@pytest.mark.parametrize(("D", "O"), [(37, 50), (192, 320)])
@pytest.mark.parametrize(("lengths", "slots"), RUNS)
def test_counts_are_those_of_the_routes(
    table_type: type[NativeMixtureTable | TorchMixtureTable],
    D: int,
    O: int,  # noqa: E741
    lengths: list[int],
    slots: list[int],
    threads: int,
) -> None:
    table = table_type(len(SHAPES) + 1, D, O)
    counts = fill(table)
    runs, T = run_lengths(lengths, slots), sum(lengths)
    sums = [[0] * n for n, _, _ in SHAPES]
    for _ in range(3):
        x_TD, y_TO = torch.randn(T, D), torch.zeros(T, O)
        routes_Tk = torch.empty(T, 5, dtype=torch.int32)
        add(table, y_TO, x_TD, Batch(runs), routes_Tk)
        new = counted(routes_Tk, runs)
        sums = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(sums, new, strict=True)]
        assert [counts_n.tolist() for counts_n in counts] == sums
        # The same without routes, as requests are computed.
        add(table, y_TO, x_TD, Batch(runs))
        sums = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(sums, new, strict=True)]
        assert [counts_n.tolist() for counts_n in counts] == sums
        add(table, y_TO, x_TD, Batch(runs, counted=False), routes_Tk)
        assert [counts_n.tolist() for counts_n in counts] == sums
    for slot, (_, k, _) in enumerate(SHAPES):
        tokens = sum(end - start for start, end, own in runs if own == slot)
        assert sum(sums[slot]) == 6 * k * tokens


@pytest.mark.parametrize("table_type", [NativeMixtureTable, TorchMixtureTable])
def test_counters_follow_their_adapter_from_slot_to_slot(
    table_type: type[NativeMixtureTable | TorchMixtureTable],
) -> None:
    table = table_type(2, 16, 8)
    weights = random_weights(4, 4, 2, 16, 8)
    mine, others = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    table.set(0, weights.counting(mine))
    y_TO, x_TD = torch.zeros(5, 8), torch.randn(5, 16)
    add(table, y_TO, x_TD, Batch([(0, 5, 0)]))
    table.clear(0)
    table.set(0, weights.counting(others))
    table.set(1, weights.counting(mine))
    add(table, y_TO, x_TD, Batch([(0, 2, 0), (2, 5, 1)]))
    assert (mine.tolist(), others.tolist()) == ([8] * 4, [2] * 4)
    table.set(1, weights)  # nobody asks
    add(table, y_TO, x_TD, Batch([(0, 5, 1)]))
    assert (mine.tolist(), others.tolist()) == ([8] * 4, [2] * 4)


@pytest.mark.parametrize(("lengths", "slots"), RUNS)
def test_the_call_of_native_blocks_counts_the_same(
    lengths: list[int], slots: list[int], threads: int
) -> None:
    D, width = 100, 330
    table = NativeMixtureTable(len(SHAPES) + 1, D, width)
    counts = fill(table)
    linear = PackedLinear(torch.randn(width, D))
    runs, T = run_lengths(lengths, slots), sum(lengths)
    _, (picks_Tk,) = project([(linear, table)], torch.randn(T, D), Batch(runs), threads)
    assert [counts_n.tolist() for counts_n in counts] == counted(picks_Tk, runs)
    assert sum(int(counts_n.sum()) for counts_n in counts) > 0
