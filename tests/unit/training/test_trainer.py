"""One step of every method: gradients, statistics, learning, and stopping on NaN."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from remix_runtime.adapter.layers import trace_routes
from remix_runtime.adapter.routing import selection_log_prob, top_k_experts
from remix_runtime.errors import TrainingError
from tests.models import tiny_model
from tests.unit.training.conftest import MakeConfig
from tests.unit.training.passes import assert_same_gradients, gradients, random_examples, set_up
from training import losses
from training.completion_loss import completion_shares
from training.data import Batch, collate, read_examples
from training.objective import (
    Layers,
    pass_loss,
    sampling_rule,
    selecting,
    softmax_gate,
    stacked,
)
from training.state import state_files
from training.trainer import StepReport, Trainer, learning_rate_factor

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(model: PreTrainedModel, layers: Layers, batch: Batch, *, seed: int) -> Tensor:
    """The selections [L, B, T, k] that a pass with this generator seed draws."""
    rule = sampling_rule(torch.Generator().manual_seed(seed))
    with torch.no_grad(), selecting(layers, rule), trace_routes(layers) as trace:
        completion_shares(model, batch)
    return stacked(trace, batch)[1]


@pytest.mark.parametrize("credit", ["sequence", "causal"])
def test_m_selections_as_one_batch_are_m_passes(
    make_config: MakeConfig, credit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which advantages are within rounding is the machine's to say; the rule has its own test.
    monkeypatch.setattr(losses, "ROUNDING", 0.0)
    m = 3
    config = make_config(selections=m, credit=credit)
    model, layers = set_up(config)
    examples = random_examples()
    loss, metrics, _ = pass_loss(
        model, layers, collate(examples), config, torch.Generator().manual_seed(1)
    )
    loss.backward()
    batched = gradients(layers)
    drawn_LBTk = drawn(model, layers, collate(examples).repeat(m), seed=1)

    # The same selections again: one row at a time, without padding, losses and log Q by hand.
    expected = {key: torch.zeros_like(value) for key, value in batched.items()}
    mean_loss = 0.0
    for e, example in enumerate(examples):
        batch = collate([example])
        length = batch.inputs_BT.shape[1]
        shares, log_probs = [], []
        for copy in range(m):
            row_LTk = drawn_LBTk[:, e * m + copy, :length]
            for layer, selection_Tk in zip(layers.values(), row_LTk, strict=True):
                layer.select = lambda z, k, s=selection_Tk: s[None]
            with trace_routes(layers) as row_trace:
                share_T = completion_shares(model, batch)[0]
            share_T.sum().backward()
            for key, gradient in gradients(layers).items():
                expected[key] += gradient / (m * len(examples))
            shares.append(share_T.detach())
            z_LTn = stacked(row_trace, batch)[0][:, 0]
            log_probs.append(selection_log_prob(z_LTn, row_LTk).sum(0))
            mean_loss += share_T.sum().item() / (m * len(examples))
        for copy in range(m):
            for t in range(length):
                start = t if credit == "causal" else 0
                costs = torch.stack([share[start:].sum() for share in shares])
                advantage = (costs[copy] - costs.mean()) / (m - 1) / len(examples)
                (advantage * log_probs[copy][t]).backward(retain_graph=True)
        for key, gradient in gradients(layers).items():
            expected[key] += gradient
    assert metrics["loss"] == pytest.approx(mean_loss, rel=1e-5)
    assert_same_gradients(batched, expected)


def test_only_routers_receive_the_router_loss(make_config: MakeConfig) -> None:
    config = make_config()
    model, layers = set_up(config)
    batch = collate(random_examples())
    pass_loss(model, layers, batch, config, torch.Generator().manual_seed(1))[0].backward()
    both = gradients(layers)
    with selecting(layers, sampling_rule(torch.Generator().manual_seed(1))):
        completion_shares(model, batch.repeat(4)).sum(-1).mean().backward()
    supervised = gradients(layers)
    for key, gradient in both.items():
        if key.endswith("router_nD"):
            assert key not in supervised
        else:
            torch.testing.assert_close(gradient, supervised[key])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_the_loss_is_that_of_the_whole_models_logits(make_config: MakeConfig, family: str) -> None:
    model, _ = set_up(make_config(), family=family)
    examples = random_examples(3)
    shares = completion_shares(model, collate(examples))
    for example, found in zip(examples, shares.sum(-1), strict=True):
        tokens = torch.tensor([example.tokens])
        log_p = torch.log_softmax(model(tokens).logits[0, :-1], dim=-1)
        losses = -log_p[torch.arange(len(example.tokens) - 1), tokens[0, 1:]]
        expected = losses[torch.tensor(example.is_target[1:])].mean()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_remix_support_is_exactly_k_and_load_counts_real_tokens(make_config: MakeConfig) -> None:
    for n, k in ((4, 1), (4, 3), (5, 5)):
        config = make_config(num_experts=n, top_k=k)
        model, layers = set_up(config)
        batch = collate(random_examples())
        generator = torch.Generator().manual_seed(n)
        *_, stats = pass_loss(model, layers, batch, config, generator)
        assert stats.support == pytest.approx(k, abs=1e-5)
        assert 0 < stats.entropy <= math.log(n) + 1e-6
        torch.testing.assert_close(stats.load_Ln.sum(-1), torch.full((len(layers),), float(k)))
        first = drawn(model, layers, batch.repeat(4), seed=n)[
            0
        ]  # [B, T, k]; rows 0-3 are the example of 8 inputs
        real = torch.cat([first[:4, :8].reshape(-1, k), first[4:].reshape(-1, k)])
        load = torch.bincount(real.flatten(), minlength=n) / len(real)
        torch.testing.assert_close(stats.load_Ln[0], load)


def test_the_softmax_mixture_weights_its_top_k_and_learns_through_them(
    make_config: MakeConfig,
) -> None:
    config = make_config(method="softmax")
    model, layers = set_up(config)
    layer = layers["model.layers.1.mlp.gate_proj"]
    x_TD = torch.randn(5, 64, requires_grad=True)
    y_TO = layer(x_TD)
    for t in range(5):
        z = layer.router_nD @ x_TD[t]
        best = top_k_experts(z, 2)
        weights = torch.softmax(z[best], -1) * layer.routing_weight * 2
        y = layer.base.weight @ x_TD[t]
        for i, weight in zip(best, weights, strict=True):
            y = y + weight * (layer.b_nOr[i] @ (layer.a_nrD[i] @ x_TD[t]))
        torch.testing.assert_close(y_TO[t], y, rtol=1e-4, atol=1e-4)
    loss, _, stats = pass_loss(model, layers, collate(random_examples()), config, torch.Generator())
    loss.backward()
    assert all(layer.router_nD.grad.abs().sum() > 0 for layer in layers.values())
    assert 1 < stats.support < 2
    gate = softmax_gate(torch.tensor([3.0, 0.0, 3.0]), torch.tensor([0, 2]))
    assert gate.tolist() == [0.5, 0.0, 0.5]


def test_plain_lora_is_w_plus_omega_b_a(make_config: MakeConfig) -> None:
    config = make_config(method="lora")
    _, layers = set_up(config)
    layer = layers["model.layers.0.mlp.up_proj"]
    assert layer.a_nrD.shape == (1, 4, 64)
    assert not layer.router_nD.requires_grad
    x_TD = torch.randn(5, 64)
    delta = config.adapter.routing_weight * x_TD @ layer.a_nrD[0].T @ layer.b_nOr[0].T
    torch.testing.assert_close(layer(x_TD), layer.base(x_TD) + delta)


@pytest.mark.parametrize(
    "settings",
    [
        {"credit": "causal"},
        {"credit": "sequence"},
        {"router": "random"},
        {"method": "lora"},
        {"method": "softmax"},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_every_method_learns(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast, settings: dict[str, str]
) -> None:
    config = make_config(steps=30, eval_every=30, expert_learning_rate=3e-2, **settings)
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    trainer = Trainer(config, tiny_model("llama"), examples, examples)
    routers = [layer.router_nD.clone() for layer in trainer.layers.values()]
    reports: list[StepReport] = []
    trainer.run(on_step=reports.append)
    assert [r.step for r in reports] == list(range(1, 31))
    assert reports[-1].held_out_loss is not None
    assert reports[-1].held_out_loss < 0.6 * reports[0].loss
    moved = [
        not torch.equal(old, layer.router_nD)
        for old, layer in zip(routers, trainer.layers.values(), strict=True)
    ]
    learned = settings.get("router") != "random" and settings.get("method") != "lora"
    assert moved == [learned] * len(moved)
    frozen = tiny_model("llama").get_submodule("model.layers.0.mlp.up_proj").weight
    assert torch.equal(trainer.layers["model.layers.0.mlp.up_proj"].base.weight, frozen)


def test_accumulated_passes_are_one_larger_batch(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = {"method": "lora", "steps": 1, "warmup_steps": 0, "max_grad_norm": 0}
    examples, _ = read_examples(make_config().data, tokenizer, max_length=64)
    weights = []
    for passes, size in ((1, 12), (2, 6), (4, 3)):
        config = make_config(gradient_accumulation=passes, batch_size=size, **settings)
        trainer = Trainer(config, tiny_model("llama"), examples)
        report = trainer.train_step()
        weights.append((report.loss, report.expert_norm))
    assert weights[1] == pytest.approx(weights[0], rel=1e-4)
    assert weights[2] == pytest.approx(weights[0], rel=1e-4)


def test_experts_and_routers_have_their_own_learning_rates(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = make_config(
        steps=2, warmup_steps=0, expert_learning_rate=1e-3, router_learning_rate=2e-2
    )
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    trainer = Trainer(config, tiny_model("llama"), examples)
    for layer in trainer.layers.values():
        torch.nn.init.normal_(layer.b_nOr, std=0.1)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    trainer.train_step()
    for name, parameter in trainer.parameters.items():
        step = (parameter - before[name]).abs().max().item()
        # Adam's first step is the learning rate, wherever there is a gradient.
        expected = 2e-2 if name.endswith("router_nD") else 1e-3
        assert step == pytest.approx(expected, rel=0.01), name


def test_the_learning_rate_warms_up_and_falls(make_config: MakeConfig) -> None:
    for schedule in ("cosine", "linear", "constant"):
        config = make_config(steps=100, warmup_steps=10, schedule=schedule)
        factors = [learning_rate_factor(step, config) for step in range(100)]
        assert factors[:11] == sorted(factors[:11])
        assert 0 < factors[0] < 0.1
        assert factors[10] == 1.0
        assert factors[10:] == sorted(factors[10:], reverse=True)
        assert factors[99] == (1.0 if schedule == "constant" else pytest.approx(0, abs=0.02))
        if schedule == "linear":
            assert factors[55] == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["remix", "lora"])
def test_nan_stops_with_a_clear_error_and_the_last_good_state_stays(
    make_config: MakeConfig,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    config = make_config(steps=20, checkpoint_every=2, method=method)
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    trainer = Trainer(config, tiny_model("llama"), examples)
    reports: list[StepReport] = []
    last_layer = trainer.model.get_submodule("model.layers.1.mlp")

    def overflow(_module: object, _inputs: object, output: Tensor) -> Tensor:
        return output * torch.inf if len(reports) >= 5 else output

    last_layer.register_forward_hook(overflow)
    with pytest.raises(
        TrainingError, match=r"step 6: the loss is nan, expected a finite"
    ) as caught:
        trainer.run(state_folder=tmp_path, on_step=reports.append)
    assert "\n" not in str(caught.value)
    assert [path.name for path in state_files(tmp_path)] == [
        "state-0000002.safetensors",
        "state-0000004.safetensors",
    ]
    saved = load_file(state_files(tmp_path)[-1])
    assert all(torch.isfinite(value).all() for value in saved.values())
    assert all(torch.isfinite(p).all() for p in trainer.parameters.values())
    # The error's own advice works: a resumed run may have other learning rates.
    slower = make_config(steps=6, method=method, expert_learning_rate=1e-4)
    again = Trainer(slower, tiny_model("llama"), examples)
    assert again.resume(tmp_path) == 4
    again.run(on_step=lambda _: None)
    assert again.step == 6


@pytest.mark.parametrize("checkpoint_every", [1, 100])
@pytest.mark.parametrize("rate", [1e37, 3e38])
def test_the_newest_state_is_one_that_can_go_on(
    make_config: MakeConfig,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    checkpoint_every: int,
    rate: float,
) -> None:
    """A rate so high that the first step at it ruins the weights: what was saved right after that
    step is no good, and what came before must be there even if no save was due."""
    settings = {"steps": 12, "checkpoint_every": checkpoint_every, "warmup_steps": 0}
    examples, _ = read_examples(make_config().data, tokenizer, max_length=64)
    good = Trainer(make_config(**settings), tiny_model("llama"), examples)
    for _ in range(3):
        good.train_step()
    good.save(tmp_path)
    ruined = make_config(**settings, expert_learning_rate=rate)
    trainer = Trainer(ruined, tiny_model("llama"), examples)
    assert trainer.resume(tmp_path) == 3
    with pytest.raises(TrainingError, match=r"the state of step 3, the last good one"):
        trainer.run(state_folder=tmp_path, on_step=lambda _: None)
    again = Trainer(make_config(**settings), tiny_model("llama"), examples)
    assert again.resume(tmp_path) == 3
    assert all(torch.equal(p, good.parameters[key]) for key, p in again.parameters.items())
    again.run(on_step=lambda _: None)
    assert again.step == 12


def test_an_infinite_gradient_stops_before_the_weights_move(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = make_config(steps=4)
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    trainer = Trainer(config, tiny_model("llama"), examples)
    parameter = next(p for name, p in trainer.parameters.items() if name.endswith("router_nD"))
    parameter.register_hook(lambda gradient: gradient * torch.inf)
    before = {key: p.detach().clone() for key, p in trainer.parameters.items()}
    with pytest.raises(TrainingError, match="step 1: the gradient of the routers is"):
        trainer.train_step()
    assert all(torch.equal(p, before[key]) for key, p in trainer.parameters.items())


def test_padding_takes_no_part(make_config: MakeConfig) -> None:
    config = make_config()
    model, layers = set_up(config)
    # One copy per example, so that padding does not shift the random draws of real tokens.
    examples = random_examples()
    batch = collate(examples)
    garbage = batch.inputs_BT.where(batch.mask_BT, 7)
    results = []
    for inputs in (batch.inputs_BT, garbage):
        padded = Batch(inputs, batch.labels_BT, batch.mask_BT)
        generator = torch.Generator().manual_seed(2)
        pass_loss(model, layers, padded, config, generator)[0].backward()
        results.append(gradients(layers))
    for key, gradient in results[0].items():
        torch.testing.assert_close(results[1][key], gradient, msg=key)
