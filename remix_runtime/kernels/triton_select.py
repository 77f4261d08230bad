"""Parts that the Triton kernels share: an adapter's numbers, sums over splits, the top-k.

Shape suffixes: I a block of tokens, N experts (padded to a power of two), J a block of rows of A.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def adapter_numbers(meta_SG3, slot, g, num_slices):
    """(n, k, r) of slice g; n is 0 where the slot has nothing there."""
    meta = meta_SG3 + (slot * num_slices + g) * 3
    return tl.load(meta), tl.load(meta + 1), tl.load(meta + 2)


@triton.jit
def sum_splits(pointers, mask, stride, SPLITS: tl.constexpr):
    """The partial sums over D, added in ascending order: written out, so that every kernel gets
    the same bits, and a near tie the same experts."""
    total = tl.load(pointers, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(pointers + split * stride, mask=mask, other=0.0)
    return total


@triton.jit
def load_logits(z_IPN, inside_I, N: tl.constexpr, SPLITS: tl.constexpr):
    """Logits [I, N] of tokens, given where the partial sums of each begin.

    Of all N experts, so that nothing waits for the adapter's numbers: what nobody has written,
    behind the adapter's own experts or where all are activated, `chosen_bits` does not look at.
    """
    z_IN = z_IPN[:, None] + tl.arange(0, N)[None, :]
    return sum_splits(z_IN, inside_I[:, None], N, SPLITS)


@triton.jit
def chosen_bits(z_IN, n, k, N: tl.constexpr):
    """int64 [I]: bit e is set where expert e has one of the k largest logits.

    Equal logits go to the lower expert and NaN comes first, as in `routing.top_k_experts`. Where
    all experts are activated the logits are not looked at: nobody has computed them.
    """
    expert_N = tl.arange(0, N)
    # Float bits as integers that sort alike, the expert below them: every key is unique.
    z_IN = tl.where(z_IN == 0, 0.0, z_IN)
    bits_IN = z_IN.to(tl.int32, bitcast=True)
    bits_IN = tl.where(z_IN != z_IN, 0x7FFFFFFF, bits_IN ^ ((bits_IN >> 31) & 0x7FFFFFFF))
    last: tl.constexpr = -0x7FFFFFFFFFFFFFFF
    key_IN = bits_IN.to(tl.int64) * 256 + (255 - expert_N)[None, :]
    key_IN = tl.where((expert_N < n)[None, :], key_IN, last)
    chosen_I = tl.zeros([z_IN.shape[0]], tl.int64)
    one_I = tl.full([z_IN.shape[0]], 1, tl.int64)
    if k < n:
        for _ in range(k):
            best_I = tl.max(key_IN, axis=1)
            chosen_I |= one_I << (255 - (best_I & 255))
            key_IN = tl.where(key_IN == best_I[:, None], last, key_IN)
    else:
        every_N = tl.where(expert_N < n, tl.full([N], 1, tl.int64) << expert_N.to(tl.int64), 0)
        chosen_I |= tl.sum(every_N)
    return chosen_I


@triton.jit
def chosen_rows(chosen_1, first, k, r, N: tl.constexpr, J: tl.constexpr):
    """Rows `first + [0, J)` of those of the chosen experts, experts ascending, as rows of A; and
    which of them exist. For one token: every thread walks over the bits, nothing is exchanged."""
    chosen = tl.sum(chosen_1, axis=0)
    j_J = first + tl.arange(0, J)
    want_J = j_J // r
    expert_J = tl.zeros([J], tl.int32)
    place = (chosen * 0).to(tl.int32)
    for e in tl.static_range(N):
        is_chosen = ((chosen >> e) & 1).to(tl.int32)
        expert_J = tl.where(want_J == tl.where(is_chosen > 0, place, -1), e, expert_J)
        place += is_chosen
    return expert_J * r + j_J % r, j_J < k * r


@triton.jit
def store_routes(routes_TGk, t_I, inside_I, chosen_I, g, stride_T, stride_G, N: tl.constexpr):
    """The chosen experts in ascending order; what is behind them stays as it was."""
    expert_N = tl.arange(0, N)
    is_chosen_IN = ((chosen_I[:, None] >> expert_N.to(tl.int64)[None, :]) & 1).to(tl.int32)
    place_IN = tl.cumsum(is_chosen_IN, axis=1) - 1
    pointers = routes_TGk + t_I[:, None] * stride_T + g * stride_G + place_IN
    expert_IN = tl.zeros_like(place_IN) + expert_N[None, :]
    tl.store(pointers, expert_IN, mask=inside_I[:, None] & (is_chosen_IN > 0))
