"""The packed linear layer against float64, and its bits.

Shape suffixes: T tokens, D inputs, O outputs.
"""

from __future__ import annotations

import pytest
import torch

from remix_runtime.kernels import make_linear, reference
from remix_runtime.kernels.cpu import PackedLinear


@pytest.mark.parametrize(("D", "O"), [(1, 1), (37, 50), (64, 96), (300, 33), (576, 192)])
@pytest.mark.parametrize("bias", [False, True])
def test_agrees_with_float64(D: int, O: int, bias: bool) -> None:  # noqa: E741
    weight_OD, bias_O = torch.randn(O, D), torch.randn(O) if bias else None
    linear = PackedLinear(weight_OD, bias_O)
    for tokens in [*range(1, 41), 200, 389]:
        x_TD = torch.randn(tokens, D)
        want_TO = reference.linear(x_TD, weight_OD, bias_O)
        torch.testing.assert_close(linear(x_TD), want_TO, atol=2e-5 * D**0.5, rtol=1e-5)


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    """Alone, at any place of any batch, and at 1 and 2 threads."""
    linear = PackedLinear(torch.randn(333, 131), torch.randn(333))
    x_TD = torch.randn(400, 131)
    alone_TO = torch.cat([linear(x_TD[t : t + 1]) for t in range(400)])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for tokens in [*range(2, 41), 193, 400]:
                first = int(torch.randint(0, 401 - tokens, ()))
                got_TO = linear(x_TD[first : first + tokens])
                assert torch.equal(got_TO, alone_TO[first : first + tokens])
    finally:
        torch.set_num_threads(before)


def test_leading_shape_strides_and_no_tokens() -> None:
    weight_OD = torch.randn(20, 24)
    linear = PackedLinear(weight_OD)
    x = torch.randn(24, 3, 2).transpose(0, 2)
    torch.testing.assert_close(linear(x), x @ weight_OD.T, atol=1e-5, rtol=1e-5)
    assert linear(torch.empty(0, 24)).shape == (0, 20)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_breaks_no_other_row(bad: float) -> None:
    linear = PackedLinear(torch.randn(50, 37))
    x_TD = torch.randn(14, 37)
    x_TD[5, 36] = bad
    broken_T = ~linear(x_TD).isfinite().all(dim=1)
    assert broken_T.tolist() == [t == 5 for t in range(14)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_native_layer_computes_in_float32(dtype: torch.dtype) -> None:
    weight_OD = torch.randn(77, 40, dtype=dtype)
    assert isinstance(make_linear(weight_OD), PackedLinear) == (dtype == torch.float32)
    linear = make_linear(weight_OD, dtype=torch.float32)
    assert isinstance(linear, PackedLinear)
    assert linear.panels.dtype == dtype
    assert (linear.in_features, linear.out_features) == (40, 77)
