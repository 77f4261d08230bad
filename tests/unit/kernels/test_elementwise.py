"""The fused elementwise operations against transformers' modules in float64, and their bits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from remix_runtime.kernels import elementwise, native
from remix_runtime.kernels.elementwise import gelu_tanh_mul, rms_norm, silu_mul


@pytest.fixture(
    params=[
        pytest.param(
            "native", marks=pytest.mark.skipif(native.lib() is None, reason="no C compiler")
        ),
        "torch",
    ]
)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(elementwise, "_native", lambda: None)
    else:
        assert elementwise._native() is not None
    return str(request.param)


def close(got: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance)


WIDTHS = [1, 8, 20, 64, 100, 576]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_is_that_of_llama_and_gemma(path: str, width: int, eps: float) -> None:
    torch.manual_seed(width)
    x, weight = torch.randn(2, 5, width) * 3, torch.randn(width)
    for module_type, offset in ((LlamaRMSNorm, 0.0), (Gemma2RMSNorm, 1.0)):
        module = module_type(width, eps)
        with torch.no_grad():
            module.weight.copy_(weight)
            close(rms_norm(x, weight, eps, offset=offset), module(x))


def test_rms_norm_in_bfloat16_rounds_as_transformers_does() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 64).bfloat16(), torch.randn(64).bfloat16()
    for module_type, offset in ((LlamaRMSNorm, 0.0), (Gemma2RMSNorm, 1.0)):
        module = module_type(64, 1e-6).bfloat16()
        with torch.no_grad():
            module.weight.copy_(weight)
            assert torch.equal(rms_norm(x, weight, 1e-6, offset=offset), module(x))


def gelu_tanh_mul_reference(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up


def silu_mul_reference(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


ACTIVATIONS = pytest.mark.parametrize(
    ("function", "reference"),
    [(silu_mul, silu_mul_reference), (gelu_tanh_mul, gelu_tanh_mul_reference)],
    ids=["silu", "gelu_tanh"],
)
Binary = Callable[[Tensor, Tensor], Tensor]


@ACTIVATIONS
@pytest.mark.parametrize("width", WIDTHS)
def test_gated_activations(path: str, function: Binary, reference: Binary, width: int) -> None:
    torch.manual_seed(width)
    gate, up = torch.randn(1, 9, width) * 4, torch.randn(1, 9, width)
    close(function(gate, up), reference(gate.double(), up.double()))


@ACTIVATIONS
def test_gated_activations_over_the_whole_range(
    path: str, function: Binary, reference: Binary
) -> None:
    gate = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([1e30, -1e30, 0.0, -0.0])])
    up = torch.ones_like(gate)
    got = function(gate, up)
    assert got.isfinite().all()
    torch.testing.assert_close(
        got.double(), reference(gate.double(), up.double()), rtol=2e-6, atol=5e-7
    )
    assert function(torch.full((1, 3), torch.nan), torch.ones(1, 3)).isnan().all()


@ACTIVATIONS
@pytest.mark.parametrize("shape", [(1, 6, 80), (6, 80), (2, 3, 80)])
def test_halves_of_a_fused_projection(
    path: str, function: Binary, reference: Binary, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    gate, up = torch.randn(shape).chunk(2, -1)
    assert not gate.is_contiguous()
    got = function(gate, up)
    assert got.is_contiguous()
    close(got, reference(gate.double(), up.double()))


def test_rms_norm_of_heads_inside_a_fused_projection(path: str) -> None:
    torch.manual_seed(2)
    fused, weight = torch.randn(1, 5, 96), torch.randn(16)
    heads = fused[..., 32:80].view(1, 5, 3, 16)
    assert not heads.is_contiguous()
    close(rms_norm(heads, weight, 1e-6), F.rms_norm(heads.double(), (16,), weight.double(), 1e-6))


needs_native = pytest.mark.skipif(native.lib() is None, reason="no C compiler")


def rope_(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation in place that the native blocks call: heads [1, H, T, d], angles [1, T, r]."""
    library = native.lib()
    assert library is not None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    heads = [pointer, number, number, number]
    library.remix_rope.restype = None
    library.remix_rope.argtypes = [*heads, *heads, pointer, pointer, *[number] * 3, ctypes.c_int]
    assert q.stride(-1) == k.stride(-1) == 1
    library.remix_rope(
        *(q.data_ptr(), q.shape[1], q.stride(1), q.stride(2)),
        *(k.data_ptr(), k.shape[1], k.stride(1), k.stride(2)),
        *(cos.data_ptr(), sin.data_ptr(), cos.stride(1), q.shape[2], cos.shape[-1]),
        torch.get_num_threads(),
    )
    return q, k


@needs_native
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("width", [2, 10, 64])
def test_rope_rotates_in_place_as_transformers_does(tokens: int, width: int) -> None:
    torch.manual_seed(width)
    q, k = (torch.randn(1, tokens, heads, width).transpose(1, 2) for heads in (4, 2))
    cos, sin = torch.randn(2, 1, tokens, width).unbind()
    expected = apply_rotary_pos_emb(q.double(), k.double(), cos.double(), sin.double())
    for x, y in zip(rope_(q, k, cos, sin), expected, strict=True):
        close(x, y)


@needs_native
def test_rope_leaves_the_rest_of_a_partly_rotated_head_alone() -> None:
    torch.manual_seed(3)
    q, k = torch.randn(1, 3, 5, 16), torch.randn(1, 1, 5, 16)
    cos, sin = torch.randn(2, 1, 5, 6).unbind()
    expected = apply_rotary_pos_emb(q[..., :6], k[..., :6], cos, sin)
    tails = q[..., 6:].clone(), k[..., 6:].clone()
    for x, head, tail in zip(rope_(q, k, cos, sin), expected, tails, strict=True):
        close(x[..., :6], head)
        assert torch.equal(x[..., 6:], tail)


@needs_native
@pytest.mark.parametrize("width", [60, 576])
def test_bits_of_a_row_depend_on_the_row_alone(width: int) -> None:
    torch.manual_seed(4)
    tokens = 600
    x, up, weight = torch.randn(tokens, width), torch.randn(tokens, width), torch.randn(width)
    q, k = torch.randn(1, 1, tokens, width), torch.randn(1, 2, tokens, width)
    cos, sin = torch.randn(2, 1, tokens, width).unbind()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        norms, silus, gelus = rms_norm(x, weight, 1e-6), silu_mul(x, up), gelu_tanh_mul(x, up)
        rotated = rope_(q.clone(), k.clone(), cos, sin)
        torch.set_num_threads(1)
        for t in (0, 1, 299, 599):
            row = slice(t, t + 1)
            assert torch.equal(rms_norm(x[row], weight, 1e-6), norms[row])
            assert torch.equal(silu_mul(x[row], up[row]), silus[row])
            assert torch.equal(gelu_tanh_mul(x[row], up[row]), gelus[row])
            one = rope_(q[:, :, row].clone(), k[:, :, row].clone(), cos[:, row], sin[:, row])
            assert all(torch.equal(a, b[:, :, row]) for a, b in zip(one, rotated, strict=True))
    finally:
        torch.set_num_threads(before)
