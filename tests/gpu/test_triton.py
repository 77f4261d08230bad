"""The Triton kernels on a GPU, at real widths, against float64; `make test-gpu`.

Shape suffixes as in `remix_runtime/kernels/triton_table.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.kernels import MixtureWeights, make_table
from remix_runtime.kernels.device_plan import DevicePlan
from remix_runtime.kernels.triton_forms import Form
from remix_runtime.kernels.triton_ops import router_logits
from remix_runtime.kernels.triton_plan import plan_from_slots
from remix_runtime.kernels.triton_table import TritonMixtureTable
from tests.gpu.device import DEVICE, HALF, TRIED_OUT, on_cuda, on_device

pytestmark = [
    pytest.mark.gpu,
    on_device,
    # Sums of logits that nobody has computed, and nobody looks at, may be anything.
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]
DTYPES = {HALF: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}
"""Each with the relative error that is allowed."""
WIDE, NARROW = (128, 96) if TRIED_OUT else (14336, 4096)
FORMS = pytest.mark.parametrize("form", list(Form), ids=lambda form: form.name)
SHAPES = [(8, 4, 8), (4, 2, 8), (1, 1, 32), (5, 3, 3)]
"""(n, k, r) of the slots, the last of which stays empty."""


def weights(n: int, k: int, r: int, D: int, width: int) -> MixtureWeights:
    layer = LayerWeights(
        torch.randn(n, r, D) / D**0.5, torch.randn(n, width, r), torch.randn(n, D) / D**0.5
    )
    return MixtureWeights.from_layer(layer, k, 2 / (k * r) ** 0.5, plain=True)


def filled(D: int, widths: Sequence[int], dtype: torch.dtype) -> TritonMixtureTable:
    table = TritonMixtureTable(
        len(SHAPES) + 1, D, widths, device=DEVICE, dtype=dtype, max_rows=64, max_experts=8
    )
    for slot, shape in enumerate(SHAPES):
        for g, width in enumerate(widths):
            table.set(slot, weights(*shape, D, width), g)
    return table


def expected(
    table: TritonMixtureTable, x_TD: Tensor, slots: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """What is added, from the table's own rounded weights in float64; and logits' margins between
    the last expert that is chosen and the first that is not [T, G]."""
    sum_TO = torch.zeros(len(slots), table.out_features, dtype=torch.float64, device=DEVICE)
    margin_TG = torch.full((len(slots), len(table.slices)), torch.inf, device=DEVICE)
    for t, slot in enumerate(slots):
        column = 0
        for g, width in enumerate(table.slices):
            columns = slice(column, column + width)
            column += width
            n, k, r = table.meta_SG3[slot, g].tolist() if 0 <= slot < table.num_slots else (0, 0, 0)
            if n == 0:
                continue
            x_D = x_TD[t].double()
            z_n, order_n = (table.router_SGND[slot, g, :n].double() @ x_D).sort(descending=True)
            if k < n:
                margin_TG[t, g] = z_n[k - 1] - z_n[k]
            chosen = order_n[:k]
            h_kr = (table.a_SGMD[slot, g, : n * r].double() @ x_D).view(n, r)[chosen]
            b_krO = table.b_SMO[slot, : n * r, columns].view(n, r, width)[chosen].double()
            sum_TO[t, columns] = table.weight_SG[slot, g] * (h_kr.flatten() @ b_krO.flatten(0, 1))
    return sum_TO, margin_TG


def relative_error(found_TO: Tensor, want_TO: Tensor) -> float:
    return float((found_TO.double() - want_TO).norm() / want_TO.norm())


def some_slots(tokens: int) -> list[int]:
    garbage = [-1, len(SHAPES), 1 << 40, -(1 << 50)]
    return [[*range(len(SHAPES)), *garbage][t * 7 % (len(SHAPES) + 4)] for t in range(tokens)]


@FORMS
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    DTYPES.items(),
)
@pytest.mark.parametrize(
    ("D", "widths"),
    [
        (NARROW, [WIDE, WIDE]),
        (WIDE, [NARROW]),
        *([] if TRIED_OUT else [(576, [576, 192, 192])]),
        (NARROW + 1 if TRIED_OUT else 577, [33]),
    ],
)
@pytest.mark.parametrize("tokens", [9] if TRIED_OUT else [1, 9, 150])
def test_real_shapes(
    form: Form,
    dtype: torch.dtype,
    tolerance: float,
    D: int,
    widths: list[int],
    tokens: int,
) -> None:
    torch.manual_seed(tokens)
    table = filled(D, widths, dtype)
    table.form = form
    slots = some_slots(tokens)
    x_TD = torch.randn(tokens, D, device=DEVICE).to(dtype)
    wide = torch.zeros(tokens, table.out_features + 16, dtype=dtype, device=DEVICE)
    y_TO = wide[:, : table.out_features]
    plan = plan_from_slots(torch.tensor(slots, device=DEVICE), table.num_slots)
    table.add(y_TO, x_TD, plan)
    want_TO, margin_TG = expected(table, x_TD, slots)
    clear_T = (margin_TG > 1e-4).all(dim=1)
    assert clear_T.float().mean() > 0.9
    assert relative_error(y_TO[clear_T], want_TO[clear_T]) < tolerance
    assert not wide[:, table.out_features :].any()
    is_base_T = torch.tensor([not 0 <= slot < len(SHAPES) for slot in slots], device=DEVICE)
    assert not y_TO[is_base_T].any()


@pytest.mark.parametrize("dtype", [HALF, torch.float32])
def test_logits_and_routes_have_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    D, tokens = WIDE, 70
    table = filled(D, [NARROW], dtype)
    x_TD = torch.randn(tokens, D, device=DEVICE).to(dtype)
    x_TD[3, 100] = 2403.0

    def logits(first: int, end: int) -> Tensor:
        slot_T = torch.tensor([t % 2 for t in range(first, end)], device=DEVICE)
        plan = plan_from_slots(slot_T, table.num_slots)
        return router_logits(*table.operands(x_TD[first:end], plan))

    all_TGN = logits(0, tokens)
    for first, end in ((0, 1), (3, 4), (5, 40), (69, 70)):
        assert torch.equal(logits(first, end), all_TGN[first:end])
    routes = []
    for table.form in Form:
        routes_Tk = torch.empty(tokens, 4, dtype=torch.int32, device=DEVICE)
        plan = plan_from_slots(torch.arange(tokens, device=DEVICE) % 2, table.num_slots)
        table.add(torch.zeros(tokens, NARROW, dtype=dtype, device=DEVICE), x_TD, plan, routes_Tk)
        routes.append(routes_Tk)
    assert all(torch.equal(routes[0], other) for other in routes)


@on_cuda
@FORMS
@pytest.mark.parametrize("beside", [False, True])
def test_a_captured_graph_follows_slots_and_their_contents(form: Form, beside: bool) -> None:
    D, widths, tokens = 1024, [512, 256], 24
    table = filled(D, widths, torch.bfloat16)
    table.form = form
    x_TD = torch.randn(tokens, D, device=DEVICE).bfloat16()
    y_TO = torch.zeros(tokens, 768, dtype=torch.bfloat16, device=DEVICE)
    slot_T = torch.zeros(tokens, dtype=torch.int64, device=DEVICE)
    buffers = DevicePlan.empty(64, table.num_slots, DEVICE, table.num_slots)

    def step() -> None:
        plan = plan_from_slots(slot_T, table.num_slots, out=buffers)
        if beside:
            pending = table.begin(x_TD, plan)
            y_TO.zero_()
            table.finish(y_TO, pending)
        else:
            y_TO.zero_()
            table.add(y_TO, x_TD, plan)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()

    def replay(slots: list[int]) -> None:
        slot_T.copy_(torch.tensor(slots))
        graph.replay()
        want_TO, _ = expected(table, x_TD, slots)
        assert relative_error(y_TO, want_TO) < 6e-3
        first_TO = y_TO.clone()
        graph.replay()
        assert torch.equal(first_TO, y_TO)  # the same bits in every run

    replay([0] * tokens)
    replay(some_slots(tokens))
    replay([t % len(SHAPES) for t in range(tokens)])
    table.clear(0)
    table.set(4, weights(6, 2, 10, D, 512), 0)  # and no second slice
    replay([t % 5 for t in range(tokens)])
    slot_T.fill_(-1)
    graph.replay()
    assert not y_TO.any()


@FORMS
def test_begin_and_finish_are_add(form: Form) -> None:
    """Also where the base product runs long beside it, and x starts where vector loads cannot."""
    D, widths, tokens = NARROW, [NARROW // 4] * 2, 40
    table = filled(D, widths, HALF)
    table.form = form
    weight_OD = torch.randn(sum(widths), D, device=DEVICE).to(HALF) / D**0.5
    plan = plan_from_slots(torch.tensor(some_slots(tokens), device=DEVICE), table.num_slots)
    x_N = torch.randn(tokens * D + 1, device=DEVICE).to(HALF)
    for x_TD in (x_N[:-1].view(tokens, D), x_N[1:].view(tokens, D)):
        want_TO = torch.nn.functional.linear(x_TD, weight_OD)
        want_TGk = torch.empty(tokens, 2, 4, dtype=torch.int32, device=DEVICE)
        table.add(want_TO, x_TD, plan, want_TGk)
        for _ in range(1 if TRIED_OUT else 20):
            found_TGk = torch.empty_like(want_TGk)
            pending = table.begin(x_TD, plan, found_TGk)
            y_TO = torch.nn.functional.linear(x_TD, weight_OD)
            table.finish(y_TO, pending)
            assert torch.equal(y_TO, want_TO)
            assert torch.equal(found_TGk, want_TGk)


@on_cuda
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler uses what PyTorch deprecates
def test_torch_compile_takes_the_addition_in_one_graph() -> None:
    table = filled(512, [256], torch.bfloat16)
    plan = plan_from_slots(torch.tensor(some_slots(12), device=DEVICE), table.num_slots)
    weight_OD = torch.randn(256, 512, device=DEVICE).bfloat16() / 512**0.5

    def step(x_TD: Tensor) -> Tensor:
        y_TO = torch.nn.functional.linear(x_TD * 2, weight_OD)
        table.add(y_TO, x_TD * 2, plan)
        return y_TO * 3

    x_TD = torch.randn(12, 512, device=DEVICE).bfloat16()
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(x_TD), step(x_TD), atol=0.1, rtol=0.02)


@on_cuda
def test_cuda_devices_get_this_table() -> None:
    table = make_table(2, 64, 32, device=DEVICE, dtype=torch.float16)
    assert isinstance(table, TritonMixtureTable)
