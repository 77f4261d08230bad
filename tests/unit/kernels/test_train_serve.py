"""The layer that trains and the kernels that serve: equal routes, outputs within 1e-5."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from remix_runtime.adapter.checkpoint import AdapterConfig, routing_weight
from remix_runtime.adapter.checkpoint.types import Scaling
from remix_runtime.adapter.layers import RemixLinear, trace_routes
from remix_runtime.kernels import Batch, MixtureWeights, make_linear, make_table

T = 64


def trained_layer(n: int, k: int, r: int, d: int, o: int, scaling: Scaling) -> RemixLinear:
    config = AdapterConfig(
        base_model_name_or_path="x",
        num_experts=n,
        top_k=k,
        r=r,
        routing_weight=routing_weight(scaling, top_k=k, r=r),
        target_modules=("x",),
    )
    layer = RemixLinear(nn.Linear(d, o), name="x", config=config)
    with torch.no_grad():
        layer.b_nOr.normal_(std=0.3)
        layer.router_nD.normal_()
    return layer.train()


def clear_inputs(layer: RemixLinear, d: int, k: int) -> torch.Tensor:
    """T random rows whose routes no rounding can flip: x [T, D]."""
    x_TD = torch.randn(2 * T, d)
    z_Tn = layer.router_logits(x_TD).detach().sort(descending=True).values
    if k < z_Tn.shape[1]:
        x_TD = x_TD[z_Tn[:, k - 1] - z_Tn[:, k] > 1e-3]
    return x_TD[:T]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize(
    ("n", "k", "r", "d", "o"),
    [
        (1, 1, 8, 32, 48),
        (2, 1, 1, 37, 50),
        (8, 4, 8, 96, 64),
        (5, 5, 3, 64, 33),
        (16, 7, 4, 80, 96),
    ],
)
def test_training_and_serving_agree(
    n: int,
    k: int,
    r: int,
    d: int,
    o: int,
    scaling: Scaling,
    native: bool,
    request: pytest.FixtureRequest,
) -> None:
    if not native:
        request.getfixturevalue("without_native_kernels")
    layer = trained_layer(n, k, r, d, o, scaling)
    x_TD = clear_inputs(layer, d, k)
    with trace_routes({"x": layer}) as trace, torch.no_grad():
        expected_TO = layer(x_TD)
    trained_Tk = trace.selections["x"][0].sort(-1).values

    table = make_table(3, d, o)
    table.set(1, MixtureWeights.from_layer(layer.weights(), k, layer.routing_weight))
    served_Tk = torch.empty(T, k, dtype=torch.int32)
    bias_O = layer.base.bias.detach()
    y_TO = make_linear(layer.base.weight.detach(), bias_O)(x_TD)
    table.add(y_TO, x_TD, Batch([(0, T, 1)]), served_Tk)
    assert torch.equal(served_Tk.long(), trained_Tk)
    torch.testing.assert_close(y_TO, expected_TO, rtol=1e-5, atol=1e-5)
