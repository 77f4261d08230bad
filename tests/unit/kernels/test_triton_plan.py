"""The plan of a step on the device, against lists."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from remix_runtime.kernels.device_plan import FEW, MANY, DevicePlan, max_tiles
from remix_runtime.kernels.triton_forms import Form, Thresholds, choose_form
from remix_runtime.kernels.triton_plan import plan_from_slots

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(plan: DevicePlan, slots: list[int]) -> None:
    valid = [slot if 0 <= slot < plan.num_slots else -1 for slot in slots]
    assert plan.slot_T.tolist() == valid
    order = [t for s in range(plan.num_slots) for t, slot in enumerate(valid) if slot == s]
    assert plan.order_T.tolist()[: len(order)] == order
    for tiles_C3, size in ((plan.few_C3, FEW), (plan.many_C3, MANY)):
        tiles = [tile for tile in tiles_C3.tolist() if tile[0] >= 0]
        assert tiles_C3.tolist()[len(tiles) :] == [[-1, *tile[1:]] for tile in
                                                   tiles_C3.tolist()[len(tiles) :]]  # fmt: skip
        found = [(slot, order[first : first + count]) for slot, first, count in tiles]
        assert all(0 < len(tokens) <= size for _, tokens in found)
        assert [t for _, tokens in found for t in tokens] == order
        assert all(valid[t] == slot for slot, tokens in found for t in tokens)
        starts = itertools.groupby(found, key=lambda tile: tile[0])
        assert all(len(tokens) == size for _, group in starts for _, tokens in list(group)[:-1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("tokens", "num_slots"), [(1, 1), (3, 5), (40, 3), (300, 7), (130, 1)])
def test_tokens_are_ordered_by_slot_and_cut_into_tiles(
    dtype: torch.dtype, tokens: int, num_slots: int
) -> None:
    slot_T = torch.randint(-1, num_slots, (tokens,), dtype=dtype, device=DEVICE)
    check(plan_from_slots(slot_T, num_slots), slot_T.tolist())


def test_what_is_no_slot_is_the_base_model() -> None:
    """Rows behind the last token of a captured graph hold whatever memory holds."""
    wide = [0, 2**31 - 1, -(2**31), 4, 3, 2**32 + 1, -(2**63), 2**63 - 1, 1, -1]
    slot_T = torch.tensor(wide, device=DEVICE)
    check(plan_from_slots(slot_T, 4), wide)


def test_persistent_buffers_are_written_in_place() -> None:
    buffers = DevicePlan.empty(100, 4, DEVICE, max_adapters=4)
    addresses = [buffers.slot_T.data_ptr(), buffers.few_C3.data_ptr()]
    for tokens in (100, 7, 64, 1):
        slot_T = torch.randint(-1, 4, (2 * tokens,), device=DEVICE)[::2]
        plan = plan_from_slots(slot_T, 4, out=buffers)
        assert [plan.slot_T.data_ptr(), plan.few_C3.data_ptr()] == addresses
        check(plan, slot_T.tolist())


def test_a_smaller_bound_of_adapters_makes_fewer_tiles() -> None:
    slot_T = torch.tensor([5] * 40 + [2] * 3, device=DEVICE)
    plan = plan_from_slots(slot_T, 32, max_adapters=2)
    assert len(plan.few_C3) == max_tiles(43, 2, FEW) == 4
    check(plan, slot_T.tolist())


def test_no_tokens() -> None:
    plan = plan_from_slots(torch.empty(0, dtype=torch.int64, device=DEVICE), 4)
    assert [len(t) for t in (plan.slot_T, plan.few_C3, plan.many_C3)] == [0, 0, 0]


def brute_force_tiles(counts: Tensor, size: int) -> int:
    return int(((counts + size - 1) // size).sum())


def test_the_bound_of_tiles_holds_and_is_reached() -> None:
    for tokens, adapters, size in itertools.product((1, 5, 16, 33, 70), (1, 2, 6), (4, 16)):
        most = 0
        for _ in range(200):
            slot_T = torch.randint(0, adapters, (tokens,))
            most = max(most, brute_force_tiles(slot_T.bincount(minlength=adapters), size))
        assert most <= max_tiles(tokens, adapters, size)
        spread = [1] * (min(adapters, tokens) - 1)
        counts = torch.tensor([*spread, tokens - len(spread)])
        assert brute_force_tiles(counts, size) == max_tiles(tokens, adapters, size)


def test_the_choice_of_forms() -> None:
    limits = Thresholds(chosen_adapters=16, prompt_tokens=256, small_prompt_tokens=512, small=1000)
    assert choose_form(1, 1, 1000, limits) is Form.TILES
    assert choose_form(2, 32, 1000, limits) is Form.ROWS_CHOSEN
    assert choose_form(3, 1, 1000, limits) is Form.TILES
    assert choose_form(8, 8, 1000, limits) is Form.TILES
    assert choose_form(16, 16, 1000, limits) is Form.ROWS_CHOSEN
    assert choose_form(32, 16, 1000, limits) is Form.TILES
    assert choose_form(256, 256, 1000, limits) is Form.PROMPT
    assert choose_form(511, 1, 999, limits) is Form.TILES
    assert choose_form(512, 1, 999, limits) is Form.PROMPT
