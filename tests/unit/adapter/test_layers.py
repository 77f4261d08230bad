"""RemixLinear against equations 4-6 written as a loop, and what its gradients may touch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from remix_runtime.adapter.checkpoint.types import AdapterConfig
from remix_runtime.adapter.layers import (
    RemixLinear,
    attach,
    attach_checkpoint,
    base_shapes,
    detach,
    trace_routes,
)
from remix_runtime.adapter.routing import sample_experts
from remix_runtime.errors import CheckpointMismatchError
from tests.models import MLP, VOCAB_SIZE, random_checkpoint, tiny_model


def make_layer(n: int = 5, k: int = 2, r: int = 3, *, bias: bool = True) -> RemixLinear:
    config = AdapterConfig(
        base_model_name_or_path="none",
        num_experts=n,
        top_k=k,
        r=r,
        routing_weight=0.7,
        target_modules=("x",),
    )
    layer = RemixLinear(nn.Linear(8, 6, bias=bias), name="x", config=config)
    nn.init.normal_(layer.b_nOr)
    nn.init.normal_(layer.router_nD)
    return layer


def by_hand(layer: RemixLinear, x_D: Tensor, experts: list[int]) -> Tensor:
    """y = W x + ω · sum of B_i A_i x, for one token."""
    y = layer.base.weight @ x_D
    if layer.base.bias is not None:
        y = y + layer.base.bias
    for i in experts:
        y = y + layer.routing_weight * (layer.b_nOr[i] @ (layer.a_nrD[i] @ x_D))
    return y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "k", "r"), [(1, 1, 4), (2, 1, 1), (5, 2, 3), (4, 4, 2)])
def test_the_layer_is_equations_4_to_6_token_by_token(n: int, k: int, r: int, bias: bool) -> None:
    layer = make_layer(n, k, r, bias=bias)
    x_BTD = torch.randn(2, 7, 8)
    y_BTO = layer(x_BTD)
    for b in range(2):
        for t in range(7):
            logits = (layer.router_nD @ x_BTD[b, t]).tolist()
            best = sorted(range(n), key=lambda i, z=logits: (-z[i], i))[:k]
            torch.testing.assert_close(y_BTO[b, t], by_hand(layer, x_BTD[b, t], best))


def test_a_replaced_selection_rule_is_what_the_layer_computes_with() -> None:
    layer = make_layer()
    layer.select = lambda z, k: torch.tensor([4, 1]).expand(*z.shape[:-1], k)
    x_TD = torch.randn(3, 8)
    expected = torch.stack([by_hand(layer, x, [4, 1]) for x in x_TD])
    torch.testing.assert_close(layer(x_TD), expected)


def test_the_router_receives_nothing_from_the_supervised_loss_and_experts_do() -> None:
    layer = make_layer()
    x_TD = torch.randn(9, 8, requires_grad=True)
    y_TO = layer(x_TD)
    y_TO.square().sum().backward()
    assert layer.router_nD.grad is None
    assert layer.a_nrD.grad is not None
    assert layer.a_nrD.grad.abs().sum() > 0
    assert layer.b_nOr.grad is not None
    assert layer.b_nOr.grad.abs().sum() > 0
    assert layer.base.weight.grad is None


def test_only_selected_experts_receive_a_gradient() -> None:
    layer = make_layer()
    layer.select = lambda z, k: torch.tensor([3, 0]).expand(*z.shape[:-1], k)
    layer(torch.randn(6, 8)).square().sum().backward()
    touched = layer.b_nOr.grad.abs().sum((1, 2)) > 0
    assert touched.tolist() == [True, False, False, True, False]


def test_the_router_gradient_stops_at_the_layers_input() -> None:
    layer = make_layer()
    x_TD = torch.randn(4, 8, requires_grad=True)
    layer.router_logits(x_TD).square().sum().backward()
    assert x_TD.grad is None
    assert layer.router_nD.grad.abs().sum() > 0


def test_a_new_layer_changes_nothing_until_it_is_trained() -> None:
    layer = make_layer()
    layer.reset_parameters()
    x_TD = torch.randn(5, 8)
    assert torch.equal(layer(x_TD), layer.base(x_TD))
    assert layer.a_nrD.std() > 0
    assert layer.router_nD.std() > 0


def test_logits_are_float32_for_a_coarse_base() -> None:
    layer = make_layer()
    layer.base.to(torch.bfloat16)
    x_TD = torch.randn(5, 8, dtype=torch.bfloat16)
    assert layer.router_logits(x_TD).dtype == torch.float32
    assert layer(x_TD).dtype == torch.bfloat16


def test_training_mode_routes_and_outputs_are_those_of_eval_mode() -> None:
    model = tiny_model("llama", seed=3)
    layers = attach_checkpoint(model, random_checkpoint(model, n=6, k=2, seed=3))
    ids = torch.randint(0, VOCAB_SIZE, (2, 12))
    with trace_routes(layers) as train_trace:
        train_logits = model.train()(ids).logits
    with torch.no_grad(), trace_routes(layers) as eval_trace:
        eval_logits = model.eval()(ids).logits
    assert train_trace.selections.keys() == layers.keys()
    for name in layers:
        assert torch.equal(train_trace.selections[name][0], eval_trace.selections[name][0])
    torch.testing.assert_close(train_logits, eval_logits, rtol=0, atol=1e-5)


def test_drawn_selections_change_the_output_and_the_trace_ends_with_its_context() -> None:
    model = tiny_model("llama")
    layers = attach_checkpoint(model, random_checkpoint(model, n=6, k=2))
    ids = torch.randint(0, VOCAB_SIZE, (1, 8))
    with torch.no_grad():
        best = model(ids).logits
        generator = torch.Generator().manual_seed(0)
        for layer in layers.values():
            layer.select = lambda z, k: sample_experts(z, k, generator)
        with trace_routes(layers) as trace:
            drawn = model(ids).logits
        model(ids)
    assert not torch.allclose(best, drawn, atol=1e-2)
    assert {len(passes) for passes in trace.logits.values()} == {1}


def test_attach_freezes_the_base_and_names_every_target() -> None:
    model = tiny_model("llama")
    shapes = base_shapes(model)
    checkpoint = random_checkpoint(model, target_modules=("q_proj", "layers.1.mlp.up_proj"))
    layers = attach(model, checkpoint.config)
    assert list(layers) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    for name, layer in layers.items():
        assert model.get_submodule(name) is layer
        assert shapes[name] == (layer.b_nOr.shape[1], layer.a_nrD.shape[2])
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 9
    assert all(name.endswith(("a_nrD", "b_nOr", "router_nD")) for name in trainable)


def test_detach_gives_the_base_back() -> None:
    model = tiny_model("llama")
    ids = torch.randint(0, VOCAB_SIZE, (1, 8))
    with torch.no_grad():
        before, names = model(ids).logits, [name for name, _ in model.named_modules()]
        layers = attach_checkpoint(model, random_checkpoint(model))
        assert not torch.allclose(model(ids).logits, before, atol=1e-2)
        detach(model, layers)
        assert torch.equal(model(ids).logits, before)
    assert [name for name, _ in model.named_modules()] == names


def test_a_target_that_names_nothing_is_refused_with_the_names_there_are() -> None:
    model = tiny_model("llama")
    config = random_checkpoint(model, target_modules=MLP).config
    wrong = AdapterConfig(
        base_model_name_or_path="none",
        num_experts=config.num_experts,
        top_k=config.top_k,
        r=config.r,
        routing_weight=config.routing_weight,
        target_modules=("gate_proj", "proj"),
    )
    with pytest.raises(CheckpointMismatchError, match=r"'proj' names no linear.*gate_proj"):
        attach(model, wrong)
    assert not any(isinstance(module, RemixLinear) for module in model.modules())


def test_the_output_head_is_no_target() -> None:
    assert "lm_head" not in base_shapes(tiny_model("llama"))


def test_a_checkpoint_with_other_layers_is_refused() -> None:
    model = tiny_model("llama")
    checkpoint = random_checkpoint(model)
    layers = dict(checkpoint.layers)
    del layers["model.layers.1.mlp.up_proj"]
    broken = replace(checkpoint, layers=layers)
    with pytest.raises(CheckpointMismatchError, match=r"layers\.1\.mlp\.up_proj"):
        attach_checkpoint(model, broken)
