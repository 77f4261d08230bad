"""Weights in 16 and 8 bits: the bits of float32 weights of the same numbers.

Shape suffixes: T tokens, D inputs, O outputs, g groups of inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from remix_runtime.errors import ConfigError
from remix_runtime.kernels import make_linear
from remix_runtime.kernels.cpu import PackedLinear, available
from remix_runtime.kernels.panels import GROUP, dequantize, quantize

pytestmark = pytest.mark.skipif(not available(), reason="no C compiler")

TYPES = (torch.bfloat16, torch.float16, torch.int8)
WIDTHS = ((1, 1), (2, 31), (31, 33), (32, 32), (33, 64), (65, 95), (128, 7), (577, 200))
"""(D, O): inputs of broken groups, outputs of broken panels."""


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def both(
    weight_OD: Tensor, dtype: torch.dtype, bias_O: Tensor | None = None
) -> tuple[PackedLinear, PackedLinear]:
    """The layer in `dtype`, and that of the same numbers in float32."""
    if dtype == torch.int8:
        same_OD = dequantize(*quantize(weight_OD))
        return PackedLinear(weight_OD, bias_O, int8=True), PackedLinear(same_OD, bias_O)
    weight_OD = weight_OD.to(dtype)
    return PackedLinear(weight_OD, bias_O), PackedLinear(weight_OD.float(), bias_O)


def bits(y: Tensor) -> Tensor:
    """Of numbers, zeros with their signs; NaNs are all alike."""
    return torch.where(y.isnan(), torch.nan, y).view(torch.int32)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_bits_of_float32(dtype: torch.dtype) -> None:
    for (D, O), bias in product(WIDTHS, (False, True)):  # noqa: E741
        kept, wide = both(torch.randn(O, D), dtype, torch.randn(O) if bias else None)
        assert kept.panels.dtype == dtype
        for tokens in [*range(1, 41), 200, 389]:
            x_TD = torch.randn(tokens, D)
            assert torch.equal(kept(x_TD), wide(x_TD)), (D, O, tokens)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    kept, _ = both(torch.randn(333, 131), dtype, torch.randn(333))
    x_TD = torch.randn(400, 131)
    alone_TO = torch.cat([kept(x_TD[t : t + 1]) for t in range(400)])
    for tokens in [*range(2, 41), 193, 400]:
        first = int(torch.randint(0, 401 - tokens, ()))
        got_TO = kept(x_TD[first : first + tokens])
        assert torch.equal(got_TO, alone_TO[first : first + tokens])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 30])
def test_every_number_of_16_bits(dtype: torch.dtype, tokens: int) -> None:
    """Subnormal ones, both zeros, infinities and NaNs too: each alone against float32's product."""
    every_OD = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(-1, 1)
    kept, wide = both(every_OD.view(dtype), dtype)
    x_TD = torch.randn(tokens, 1)
    assert torch.equal(bits(kept(x_TD)), bits(wide(x_TD)))
    ones_TD = torch.ones(tokens, 1)
    same_TO = every_OD.view(dtype).float().T.expand(tokens, -1) + 0.0  # a sum has no −0
    assert torch.equal(bits(kept(ones_TD)), bits(same_TO))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_8_bits_are_within_half_a_step(scale: float) -> None:
    for D in (1, GROUP - 1, GROUP, 3 * GROUP + 5):
        weight_OD = torch.randn(40, D) * scale
        q_OD, scale_Og = quantize(weight_OD)
        assert (q_OD.dtype, scale_Og.dtype) == (torch.int8, torch.bfloat16)
        step_OD = scale_Og.float().repeat_interleave(GROUP, dim=1)[:, :D]
        error_OD = (dequantize(q_OD, scale_Og) - weight_OD).abs()
        assert (error_OD <= 0.5001 * step_OD).all()
        # A step is the 127th part of the largest weight of the group, but for bfloat16's rounding.
        for first in range(0, D, GROUP):
            group_OD = weight_OD[:, first : first + GROUP]
            expected_O = group_OD.abs().amax(1) / 127
            torch.testing.assert_close(step_OD[:, first], expected_O, rtol=2**-8, atol=0)


def test_an_outlier_costs_its_own_group_only() -> None:
    weight_OD = torch.randn(64, 4 * GROUP)
    plain_OD = dequantize(*quantize(weight_OD))
    weight_OD[:, GROUP + 3] = 1000.0
    found_OD = dequantize(*quantize(weight_OD))
    others = torch.ones(4 * GROUP, dtype=torch.bool)
    others[GROUP : 2 * GROUP] = False
    assert torch.equal(found_OD[:, others], plain_OD[:, others])
    torch.testing.assert_close(found_OD[:, GROUP + 3], weight_OD[:, GROUP + 3], rtol=2**-8, atol=0)
    assert (found_OD[:, ~others] - weight_OD[:, ~others]).abs().max() <= 0.51 * 1000 / 127


def test_zeros_and_what_is_too_small_for_a_scale() -> None:
    weight_OD = torch.randn(40, 3 * GROUP)
    weight_OD[:, GROUP : 2 * GROUP] = 0
    weight_OD[:, 2 * GROUP :] = 1e-44
    found_OD = dequantize(*quantize(weight_OD))
    assert not found_OD[:, GROUP:].any()
    assert found_OD[:, :GROUP].any()
    linear = PackedLinear(weight_OD, int8=True)
    x_TD = torch.zeros(3, 3 * GROUP)
    x_TD[:, GROUP:] = torch.randn(3, 2 * GROUP)
    assert torch.equal(linear(x_TD), torch.zeros(3, 40))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_8_bits_refuse_what_is_no_number(bad: float) -> None:
    weight_OD = torch.randn(40, 70)
    weight_OD[39, 69] = bad
    with pytest.raises(ConfigError, match="no finite number"):
        make_linear(weight_OD, int8=True)
