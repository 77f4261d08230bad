"""Several mixtures in one linear of vLLM, against the equations, on the CPU.

Inputs and routers are small multiples of 1/8, so that no route is a near-tie.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.engines.vllm.slices import SlicedTable
from remix_runtime.engines.vllm.tokens import LOOK_EVERY, StepTokens
from remix_runtime.kernels import MixtureWeights, reference

D, SLICES, T = 24, (40, 8, 8), 7
SLOTS_T = [0, 0, -1, 1, 1, 1, 0]
RUNS = [(0, 2, 0), (2, 3, -1), (3, 6, 1), (6, 7, 0)]
Adapter = tuple[LayerWeights, int, float]


def eighths(*shape: int) -> Tensor:
    return torch.randint(-12, 13, shape) / 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def adapter(n: int, k: int, r: int, width: int) -> Adapter:
    return LayerWeights(eighths(n, r, D), eighths(n, width, r), eighths(n, D)), k, 0.5


def table(reduce: object = None, in_features: int = D) -> SlicedTable:
    made = SlicedTable(
        2,
        in_features,
        SLICES,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_rows=64,
        max_experts=32,
        reduce=reduce,  # type: ignore[arg-type]
    )
    made.names = ("q", "k", "v")
    return made


def step() -> StepTokens:
    made = StepTokens(torch.tensor([*SLOTS_T, 99, 99]), num_slots=2)
    made.begin_step()
    made.assign(T, [11, 12])
    return made


def laid_out(adapter: Adapter, *, plain: bool) -> MixtureWeights:
    layer, k, weight = adapter
    return MixtureWeights.from_layer(layer, k, weight, plain=plain)


def adapters() -> list[list[Adapter | None]]:
    """By slice and slot; the second slot leaves one slice alone."""
    shapes = ((4, 2, 3), (3, 1, 2))
    made: list[list[Adapter | None]] = [
        [adapter(*shape, width) for shape in shapes] for width in SLICES
    ]
    made[1][1] = None
    return made


def expected(x_TD: Tensor, y_TO: Tensor, made: list[list[Adapter | None]]) -> list[list[list[int]]]:
    """Adds to `y_TO` what should be added; returns the routes by slice."""
    return [
        reference.add_mixture(y_part, x_TD, RUNS, slots)
        for y_part, slots in zip(y_TO.split(SLICES, dim=1), made, strict=True)
    ]


def test_every_slice_has_its_own_mixtures_and_routes() -> None:
    made, sliced, tokens = adapters(), table(), step()
    for position, slots in enumerate(made):
        for slot, weights in enumerate(slots):
            if weights is not None:
                sliced.set(slot, position, laid_out(weights, plain=sliced.wants_plain))
    x_TD = eighths(T, D)
    # Rows of a wider tensor, as a view of a padded one would be.
    wide_TO = eighths(T, sum(SLICES) + 5)
    y_TO, want_TO = wide_TO[:, : sum(SLICES)], wide_TO[:, : sum(SLICES)].clone()
    rest_T5 = wide_TO[:, sum(SLICES) :].clone()
    routes = expected(x_TD, want_TO, made)
    tokens.record(11)
    sliced.add(y_TO, x_TD, tokens)
    torch.testing.assert_close(y_TO, want_TO, rtol=1e-5, atol=1e-5)
    assert torch.equal(wide_TO[:, sum(SLICES) :], rest_T5)
    assert tokens.take_routes() == {
        name: [routes[i][t] for t in (0, 1, 6)] for i, name in enumerate("qkv")
    }
    assert tokens.take_load()[12].keys() == {"q", "v"}
    sliced.clear(0)
    sliced.clear(1)
    sliced.add(y_TO, x_TD, tokens)
    torch.testing.assert_close(y_TO, want_TO, rtol=1e-5, atol=1e-5)


def test_padded_rows_stay_as_they_are() -> None:
    made, sliced, tokens = adapters(), table(), step()
    sliced.set(0, 0, laid_out(made[0][0], plain=sliced.wants_plain))  # type: ignore[arg-type]
    x_TD, y_TO = eighths(T + 2, D), eighths(T + 2, sum(SLICES))
    want_TO = y_TO.clone()
    expected(x_TD[:T], want_TO[:T], [[made[0][0], None], [None] * 2, [None] * 2])
    for _ in range(LOOK_EVERY):  # with a look at the routes, too
        tokens.begin_step()
        found_TO = y_TO.clone()
        assert sliced.begin(x_TD, tokens) is None
        sliced.finish(found_TO, x_TD, tokens, None)
        torch.testing.assert_close(found_TO, want_TO, rtol=1e-5, atol=1e-5)


def test_two_parts_of_the_inputs_add_up_to_the_whole() -> None:
    """As two ranks of a row-parallel linear: only the logits are summed on the way."""
    made, x_TD = adapters(), eighths(T, D)
    want_TO = torch.zeros(T, sum(SLICES))
    expected(x_TD, want_TO, made)
    parts = (slice(0, D // 2), slice(D // 2, D))
    logits: list[list[Tensor]] = [[], []]

    def run(rank: int, reduce: object) -> Tensor:
        sliced, y_TO = table(reduce, D // 2), torch.zeros(T, sum(SLICES))
        assert sliced.wants_plain
        for position, slots in enumerate(made):
            for slot, weights in enumerate(slots):
                if weights is not None:
                    layer, k, omega = weights
                    part = LayerWeights(
                        layer.a_nrD[..., parts[rank]], layer.b_nOr, layer.router_nD[:, parts[rank]]
                    )
                    sliced.set(slot, position, laid_out((part, k, omega), plain=True))
        sliced.add(y_TO, x_TD[:, parts[rank]], step())
        return y_TO

    # First each rank tells its logits, then each gets the sums: the order of calls is the same.
    for rank in range(2):

        def tell(z_Tn: Tensor, rank: int = rank) -> Tensor:
            logits[rank].append(z_Tn.clone())
            return z_Tn

        run(rank, tell)
    summed = [a_Tn + b_Tn for a_Tn, b_Tn in zip(*logits, strict=True)]
    found_TO = torch.zeros(T, sum(SLICES))
    for rank in range(2):
        sums = iter(summed)
        found_TO += run(rank, lambda _, sums=sums: next(sums))
    torch.testing.assert_close(found_TO, want_TO, rtol=1e-5, atol=1e-5)
