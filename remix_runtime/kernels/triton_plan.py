"""The plan of a step from its slot indices, in one launch and without asking the host.

Shape suffixes: T tokens, S slots, C tiles, I a block of tokens or tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from remix_runtime.kernels.device_plan import FEW, MANY, DevicePlan


def plan_from_slots(
    slot_T: Tensor,
    num_slots: int,
    *,
    max_adapters: int | None = None,
    out: DevicePlan | None = None,
) -> DevicePlan:
    """The plan of tokens with these slots (any integer type).

    What is not in [0, num_slots) is the base model: -1, and whatever uninitialised rows hold.
    `max_adapters` bounds how many slots have tokens, where the caller knows better than
    `num_slots`. With `out`, made for at least as many tokens, the plan is a view of its buffers:
    captured kernels read the next step's plan there.
    """
    T = len(slot_T)
    if max_adapters is None:
        max_adapters = num_slots if out is None else out.max_adapters
    if out is None:
        plan = DevicePlan.empty(T, num_slots, slot_T.device, max_adapters)
    else:
        assert out.num_slots == num_slots
        plan = out.first(T, max_adapters)
    if T:
        slots = triton.next_power_of_2(num_slots)
        _plan[(num_slots + 1,)](
            slot_T, plan.slot_T, plan.order_T, plan.few_C3, plan.many_C3,
            T, slot_T.stride(0), num_slots, len(plan.few_C3), len(plan.many_C3),
            FEW=FEW, MANY=MANY, S=slots, BLOCK=max(16, 8192 // slots),
        )  # fmt: skip
    return plan


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_few", "num_many"])
def _plan(
    given_T, slot_T, order_T, few_C3, many_C3,
    num_tokens, given_stride, num_slots, num_few, num_many,
    FEW: tl.constexpr, MANY: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per slot counts everybody's tokens and writes its own; the last one writes
    `slot_T` and ends the lists of tiles."""
    me = tl.program_id(0)
    slot_S = tl.arange(0, S)
    count_S = tl.zeros([S], tl.int32)
    for start in range(0, num_tokens, BLOCK):
        t_I = start + tl.arange(0, BLOCK)
        slot_I = _slots(given_T, t_I, given_stride, num_tokens, num_slots)
        count_S += tl.sum((slot_I[:, None] == slot_S[None, :]).to(tl.int32), axis=0)
        if me == num_slots:
            tl.store(slot_T + t_I, slot_I, mask=t_I < num_tokens)

    position = tl.sum(tl.where(slot_S < me, count_S, 0))
    count = tl.sum(tl.where(slot_S == me, count_S, 0))
    _write_tiles(few_C3, num_few, me, num_slots, slot_S, count_S, position, count, FEW, BLOCK)
    _write_tiles(many_C3, num_many, me, num_slots, slot_S, count_S, position, count, MANY, BLOCK)

    for start in range(0, num_tokens, BLOCK):
        t_I = start + tl.arange(0, BLOCK)
        slot_I = _slots(given_T, t_I, given_stride, num_tokens, num_slots)
        mine_I = (slot_I == me).to(tl.int32)
        place_I = position + tl.cumsum(mine_I) - 1
        tl.store(order_T + place_I, t_I, mask=mine_I > 0)
        position += tl.sum(mine_I)


@triton.jit
def _slots(given_T, t_I, stride, num_tokens, num_slots):
    """Slots that are valid. Compared in the given type, so that a 64-bit index is not cut short
    first."""
    given_I = tl.load(given_T + t_I.to(tl.int64) * stride, mask=t_I < num_tokens, other=-1)
    return tl.where((given_I >= 0) & (given_I < num_slots), given_I, -1).to(tl.int32)


@triton.jit
def _write_tiles(
    tiles_C3, num_tiles, me, num_slots, slot_S, count_S, position, count,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    begin = tl.sum(tl.where(slot_S < me, (count_S + SIZE - 1) // SIZE, 0))
    is_end = me == num_slots
    number = tl.where(is_end, num_tiles - begin, (count + SIZE - 1) // SIZE)
    for start in range(0, number, BLOCK):
        i_I = start + tl.arange(0, BLOCK)
        tile_I = tiles_C3 + 3 * (begin + i_I)
        left_I = tl.minimum(count - i_I * SIZE, SIZE)
        inside_I = (i_I < number) & (begin + i_I < num_tiles)
        tl.store(tile_I, tl.where(is_end, -1, me), mask=inside_I)
        tl.store(tile_I + 1, position + i_I * SIZE, mask=inside_I)
        tl.store(tile_I + 2, tl.where(is_end, 0, left_I), mask=inside_I)
