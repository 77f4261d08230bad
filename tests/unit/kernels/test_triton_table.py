"""The Triton kernels against the equations: all forms, slices, types; in Triton's interpreter
where there is no GPU.

Shape suffixes as in `remix_runtime/kernels/triton_table.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.errors import CapacityError
from remix_runtime.kernels import Batch, MixtureWeights, reference
from remix_runtime.kernels.triton_forms import Form
from remix_runtime.kernels.triton_ops import (
    add_mixture,
    begin_mixture,
    finish_mixture,
    router_logits,
)
from remix_runtime.kernels.triton_plan import plan_from_slots
from remix_runtime.kernels.triton_table import TritonMixtureTable

# Sums of logits that nobody has computed, and nobody looks at, may be anything.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMS = pytest.mark.parametrize("form", list(Form), ids=lambda form: form.name)
Adapter = tuple[list[LayerWeights | None], int, float]
"""One layer per slice, top_k, ω."""


def eighths(*shape: int) -> Tensor:
    """Logits of such numbers are exact in float32: no near ties, but exact ones."""
    return torch.randint(-12, 13, shape) / 8


def make_adapter(n: int, k: int, r: int, D: int, widths: Sequence[int]) -> Adapter:
    def layer(width: int) -> LayerWeights:
        return LayerWeights(torch.randn(n, r, D), torch.randn(n, width, r), eighths(n, D))

    return [layer(width) for width in widths], k, 2 / (k * r) ** 0.5


def fill(table: TritonMixtureTable, slot: int, adapter: Adapter) -> None:
    layers, k, weight = adapter
    table.clear(slot)
    for g, layer in enumerate(layers):
        if layer is not None:
            table.set(slot, MixtureWeights.from_layer(layer, k, weight).to(torch.device("cpu")), g)


def make_table(
    adapters: Sequence[Adapter | None], D: int, widths: Sequence[int], **options: object
) -> TritonMixtureTable:
    options = {"dtype": torch.float32} | options
    table = TritonMixtureTable(len(adapters), D, widths, device=DEVICE, **options)  # type: ignore[arg-type]
    for slot, adapter in enumerate(adapters):
        if adapter is not None:
            fill(table, slot, adapter)
    return table


def check(
    table: TritonMixtureTable,
    adapters: Sequence[Adapter | None],
    slots: Sequence[int],
    x_TD: Tensor,
    tolerance: float = 1e-6,
) -> None:
    """Output and routes of one call; y is a part of a wider tensor."""
    T, dtype, largest_k = len(slots), table.a_SGMD.dtype, 64
    wide = torch.randn(T, table.out_features + 16).to(dtype).to(DEVICE)
    y_TO, base_TO = wide[:, : table.out_features], wide.clone()
    routes_TGk = torch.full((T, len(table.slices), largest_k), 99, dtype=torch.int32).to(DEVICE)
    plan = plan_from_slots(torch.tensor(slots, device=DEVICE), table.num_slots)
    table.add(y_TO, x_TD.to(dtype).to(DEVICE), plan, routes_TGk)
    assert torch.equal(wide[:, table.out_features :], base_TO[:, table.out_features :])
    for t, slot in enumerate(slots):
        column = 0
        for g, width in enumerate(table.slices):
            adapter = adapters[slot] if 0 <= slot < len(adapters) else None
            layer = adapter[0][g] if adapter else None
            before_O, after_O = (y[t, column : column + width].cpu() for y in (base_TO, wide))
            route = [e for e in routes_TGk[t, g].tolist() if e >= 0]
            column += width
            if adapter is None or layer is None:
                assert torch.equal(before_O, after_O)
                assert route == []
                continue
            rounded = LayerWeights(
                layer.a_nrD.to(dtype).float(), layer.b_nOr.to(dtype).float(), layer.router_nD
            )
            x_D = x_TD[t].to(dtype).float()
            delta_O, want = reference.mixture(x_D, rounded, adapter[1], adapter[2])
            assert route == want
            error = (after_O.double() - before_O.double() - delta_O).norm()
            scale = x_D.norm() * layer.a_nrD.norm() * layer.b_nOr.norm() / layer.router_nD.shape[0]
            assert error <= tolerance * (scale + before_O.double().norm())


GRID = [
    (37, [50], [(1, 1, 1), (2, 1, 3), None], [0, 1, -1, 2, 7, 0, 1, 1]),
    (64, [16, 33], [(8, 4, 8), (3, 3, 1)], [0, 0, 0, 1, -1, 1]),
    (530, [7], [(16, 5, 3), (4, 2, 16)], [1, 0]),
    (100, [48, 16, 16], [(5, 2, 8), (1, 1, 16), (16, 16, 1)], [2, 0, 1, -(2**40), 1]),
    (1050, [20], [(4, 2, 3)], [0]),
]


@FORMS
@pytest.mark.parametrize(("D", "widths", "shapes", "slots"), GRID)
def test_every_form_agrees_with_the_equations(
    form: Form,
    D: int,
    widths: list[int],
    shapes: list[tuple[int, int, int] | None],
    slots: list[int],
) -> None:
    adapters = [shape and make_adapter(*shape, D, widths) for shape in shapes]
    table = make_table(adapters, D, widths)
    table.form = form
    check(table, adapters, slots, eighths(len(slots), D))


@FORMS
def test_many_tokens_of_a_slot_take_several_tiles(form: Form) -> None:
    D = 24
    adapters: list[Adapter | None] = [
        make_adapter(8, 4, 2, D, [32]),
        make_adapter(3, 1, 4, D, [32]),
    ]
    table = make_table(adapters, D, [32])
    table.form = form
    slots = [0] * 35 + [1, -1, 1] + [0] * 40
    check(table, adapters, slots, eighths(len(slots), D))


@FORMS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_half_precision(form: Form, dtype: torch.dtype, tolerance: float) -> None:
    if dtype == torch.bfloat16 and form is not Form.ROWS_CHOSEN and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 matrices as integers")
    D, widths = 72, [40, 24]
    adapters = [make_adapter(8, 4, 8, D, widths), make_adapter(1, 1, 16, D, widths)]
    table = make_table(adapters, D, widths, dtype=dtype)
    table.form = form
    check(table, adapters, [0, 1, -1, 0], eighths(4, D), tolerance)


@FORMS
def test_a_slice_that_an_adapter_lacks_stays_as_it_was(form: Form) -> None:
    D, widths = 40, [32, 48]
    full, half = make_adapter(4, 2, 4, D, widths), make_adapter(6, 3, 2, D, widths)
    half[0][0] = None
    table = make_table([full, half], D, widths)
    table.form = form
    check(table, [full, half], [0, 1, 1, -1], eighths(4, D))
    fill(table, 0, half)  # and of another adapter that was there nothing is left
    check(table, [half, half], [0, 1, 1, -1], eighths(4, D))


@FORMS
def test_ties_and_massive_activations(form: Form) -> None:
    D = 48
    adapter = make_adapter(6, 3, 2, D, [16])
    layer = adapter[0][0]
    assert layer is not None
    layer.router_nD[[1, 3, 4]] = layer.router_nD[1].clone()
    layer.router_nD[[0, 5]] = 0.0
    x_TD = eighths(6, D)
    x_TD[2] = 0.0
    x_TD[3, 7] = 2403.0
    table = make_table([adapter], D, [16])
    table.form = form
    check(table, [adapter], [0] * 6, x_TD)


def test_as_many_experts_as_there_can_be() -> None:
    adapter = make_adapter(64, 11, 1, 20, [16])
    every, wide = make_adapter(64, 64, 1, 20, [16]), make_adapter(2, 1, 70, 20, [16])
    table = make_table([adapter, every, wide], 20, [16])
    for table.form in Form:
        check(table, [adapter, every, wide], [0, 0, 1, 2, 1], eighths(5, 20))


@FORMS
def test_a_row_has_the_same_bits_in_every_batch(form: Form) -> None:
    D, widths = 530, [32]
    adapters = [make_adapter(8, 4, 4, D, widths), make_adapter(3, 2, 3, D, widths)]
    table = make_table(adapters, D, widths)
    table.form = form
    x_TD, base_TO = torch.randn(5, D, device=DEVICE), torch.randn(5, 32, device=DEVICE)

    def rows(tokens: list[int], slots: list[int]) -> Tensor:
        y_TO = base_TO[tokens]
        table.add(y_TO, x_TD[tokens], plan_from_slots(torch.tensor(slots, device=DEVICE), 2))
        return y_TO

    alone = [rows([t], [t % 2]) for t in range(5)]
    assert torch.equal(rows([0, 1, 2, 3, 4], [0, 1, 0, 1, 0]), torch.cat(alone))
    assert torch.equal(rows([3, 0, 1], [1, -1, 1]), torch.cat([alone[3], base_TO[:1], alone[1]]))


def test_router_logits_have_the_same_bits_in_every_batch() -> None:
    adapters = [make_adapter(8, 4, 1, 530, [8])]
    table = make_table(adapters, 530, [8])
    x_TD = torch.randn(18, 530, device=DEVICE)

    def logits(tokens: slice) -> Tensor:
        x = x_TD[tokens]  # starts where vector loads cannot
        plan = plan_from_slots(torch.zeros(len(x), dtype=torch.int64, device=DEVICE), 1)
        return router_logits(*table.operands(x, plan))

    all_TGN = logits(slice(None))
    for t in (0, 1, 5, 17):
        assert torch.equal(logits(slice(t, t + 1)), all_TGN[t : t + 1])
    layer = adapters[0][0][0]
    assert layer is not None
    want_Tn = x_TD.cpu().double() @ layer.router_nD.double().T
    torch.testing.assert_close(all_TGN[:, 0].cpu().double(), want_Tn, atol=1e-4, rtol=1e-5)


@FORMS
def test_logits_of_several_devices_are_added_before_the_selection(form: Form) -> None:
    """A row-parallel linear: each rank has a part of x, A and the router."""
    D, half = 64, 32
    whole = make_adapter(8, 3, 4, D, [16])
    layer = whole[0][0]
    assert layer is not None
    ranks: list[TritonMixtureTable] = []
    for part in (slice(0, half), slice(half, D)):
        share = LayerWeights(
            layer.a_nrD[..., part].contiguous(), layer.b_nOr, layer.router_nD[:, part].contiguous()
        )
        ranks.append(make_table([([share], *whole[1:]), None], half, [16]))
    x_TD = eighths(4, D)
    plan = plan_from_slots(torch.tensor([0, 0, -1, 0], device=DEVICE), 2)
    parts = [x_TD[:, :half].contiguous().to(DEVICE), x_TD[:, half:].contiguous().to(DEVICE)]
    z_TGN = sum(
        (router_logits(*rank.operands(x, plan)) for rank, x in zip(ranks, parts, strict=True)),
        torch.zeros((), device=DEVICE),
    )
    total_TO = torch.zeros(4, 16, device=DEVICE)
    routes_Tk = torch.empty(4, 3, dtype=torch.int32, device=DEVICE)
    for rank, x in zip(ranks, parts, strict=True):
        rank.form = form
        y_TO = torch.zeros(4, 16, device=DEVICE)
        rank.add(y_TO, x, plan, routes_Tk, reduce=lambda own_TGN: z_TGN)
        total_TO += y_TO
    for t in (0, 1, 3):
        want_O, route = reference.mixture(x_TD[t], layer, whole[1], whole[2])
        assert routes_Tk[t].tolist() == route
        torch.testing.assert_close(total_TO[t].cpu(), want_O.float(), atol=1e-3, rtol=1e-4)
    assert not total_TO[2].any()


def test_slots_change_in_place() -> None:
    D, widths = 40, [32, 16]
    shapes = [(8, 4, 4), (2, 1, 16), (5, 5, 3)]
    first, second, third = (make_adapter(*shape, D, widths) for shape in shapes)
    table = make_table([None, None], D, widths, max_rows=32, max_experts=8)
    addresses = [tensor.data_ptr() for tensor in (table.a_SGMD, table.router_SGND, table.b_SMO)]
    slots, x_TD = [0, 1, 1, -1], eighths(4, D)
    check(table, [None, None], slots, x_TD)
    for adapters in ([first, None], [first, second], [third, second], [None, first]):
        for slot, adapter in enumerate(adapters):
            table.clear(slot)
            if adapter:
                fill(table, slot, adapter)
        check(table, adapters, slots, x_TD)
    assert addresses == [t.data_ptr() for t in (table.a_SGMD, table.router_SGND, table.b_SMO)]


def test_an_adapter_beyond_the_capacity_is_refused_and_changes_nothing() -> None:
    first = make_adapter(4, 2, 4, 24, [16])
    table = make_table([first], 24, [16], max_rows=16, max_experts=4)
    with pytest.raises(CapacityError, match="num_experts: the adapter has 5, room is for 4"):
        fill_over(table, make_adapter(5, 2, 1, 24, [16]))
    with pytest.raises(CapacityError, match="num_experts · r: the adapter has 20, room is for 16"):
        fill_over(table, make_adapter(4, 2, 5, 24, [16]))
    check(table, [first], [0, -1], eighths(2, 24))
    grows = make_table([first], 24, [16])
    with pytest.raises(CapacityError, match="num_experts: the adapter has 65, room is for 64"):
        fill_over(grows, make_adapter(65, 2, 1, 24, [16]))


def fill_over(table: TritonMixtureTable, adapter: Adapter) -> None:
    layer = adapter[0][0]
    assert layer is not None
    table.set(0, MixtureWeights.from_layer(layer, adapter[1], adapter[2]))


@FORMS
def test_begin_and_finish_are_add(form: Form) -> None:
    D, widths, slots = 530, [32, 48], [0, 1, 1, -1, 0]
    adapters = [make_adapter(8, 4, 4, D, widths), make_adapter(3, 2, 3, D, widths)]
    table = make_table(adapters, D, widths)
    table.form = form
    x_TD, base_TO = torch.randn(5, D, device=DEVICE), torch.randn(5, 80, device=DEVICE)
    plan = plan_from_slots(torch.tensor(slots, device=DEVICE), 2)
    found = []
    for is_split in (False, True):
        y_TO = base_TO.clone()
        routes_TGk = torch.empty(5, 2, 4, dtype=torch.int32, device=DEVICE)
        if is_split:
            pending = table.begin(x_TD, plan, routes_TGk)
            table.finish(y_TO, pending)
        else:
            table.add(y_TO, x_TD, plan, routes_TGk)
        found.append((y_TO, routes_TGk))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert table.begin(x_TD, Batch([(0, 5, -1)])) is None
    table.finish(base_TO, None)


def test_no_tokens_and_no_adapters() -> None:
    table = make_table([None, None], 8, [16])
    y_TO, routes_Tk = torch.ones(3, 16, device=DEVICE), torch.ones(3, 2, dtype=torch.int32)
    routes_Tk = routes_Tk.to(DEVICE)
    table.add(y_TO, torch.ones(3, 8, device=DEVICE), Batch([(0, 3, 1)]), routes_Tk)
    assert (y_TO == 1).all()
    assert (routes_Tk == -1).all()
    fill(table, 0, make_adapter(2, 1, 1, 8, [16]))
    empty = plan_from_slots(torch.empty(0, dtype=torch.int64, device=DEVICE), 2)
    table.add(y_TO[:0], torch.ones(0, 8, device=DEVICE), empty, routes_Tk[:0])


def test_the_operators_are_what_torch_compile_expects() -> None:
    table = make_table([make_adapter(4, 2, 4, 32, [16])], 32, [16])
    x_TD, y_TO = torch.randn(2, 32, device=DEVICE), torch.randn(2, 16, device=DEVICE)
    plan = plan_from_slots(torch.tensor([0, 0], device=DEVICE), 1)
    operands = table.operands(x_TD, plan)
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(router_logits, operands, test_utils=utilities)
    routes_TGk = torch.full((2, 1, 2), -1, dtype=torch.int32, device=DEVICE)
    for routes in (None, routes_TGk):
        torch.library.opcheck(
            add_mixture, (y_TO, routes, None, *operands, int(Form.TILES)), test_utils=utilities
        )

    for form in Form:
        begun = (*operands, int(form))
        torch.library.opcheck(begin_mixture, (routes_TGk, *begun), test_utils=utilities)
        made = begin_mixture(routes_TGk, *begun)
        arguments = (y_TO, routes_TGk, *made, *begun)
        torch.library.opcheck(finish_mixture, arguments, test_utils=utilities)

    def step(y_TO: Tensor, x_TD: Tensor) -> Tensor:
        y_TO = y_TO * 2
        table.add(y_TO, x_TD * 2, plan)
        return y_TO + 1

    def split_step(y_TO: Tensor, x_TD: Tensor) -> Tensor:
        pending = table.begin(x_TD * 2, plan)
        y_TO = y_TO * 2
        table.finish(y_TO, pending)
        return y_TO + 1

    for each in (step, split_step):
        compiled = torch.compile(each, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(y_TO, x_TD), step(y_TO, x_TD))


def test_the_kernels_compile_for_an_h100() -> None:
    """The interpreter accepts much that the compiler refuses."""
    script = Path(__file__).with_name("compile_triton.py")
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, str(script), "--small"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "expand_rows" in done.stdout
