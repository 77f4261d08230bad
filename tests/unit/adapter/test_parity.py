"""Recording what a trained model does, and refusing whatever does otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from remix_runtime.adapter.checkpoint import Parity, read_parity, write_checkpoint
from remix_runtime.adapter.layers import RemixLinear, attach_checkpoint, trace_routes
from remix_runtime.adapter.parity import compare_parity, model_runner, record_parity, replay_parity
from remix_runtime.adapter.routing import sample_experts, top_k_experts
from remix_runtime.errors import ParityError
from tests.models import FAMILIES, VOCAB_SIZE, random_checkpoint, tiny_model

PROMPTS = [[5, 250, 17, 99, 3], [41, 200, 7, 7, 8, 120, 64, 1, 33, 180, 11, 90, 2, 150], [9]]


def adapted(family: str = "llama", **choice):
    """A model with a random adapter attached, its layers, the adapter."""
    model = tiny_model(family)
    checkpoint = random_checkpoint(model, **choice)
    return model, attach_checkpoint(model, checkpoint), checkpoint


def recorded(**choice) -> tuple[torch.nn.Module, dict[str, RemixLinear], Parity]:
    model, layers, _ = adapted(**choice)
    return model, layers, record_parity(model, layers, PROMPTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_through_the_file_is_decisive_for_every_prompt(tmp_path, family):
    model, layers, checkpoint = adapted(family, n=5, k=3, seed=2)
    parity = record_parity(model, layers, PROMPTS)
    write_checkpoint(tmp_path / "a", checkpoint.config, checkpoint.layers, readme="", parity=parity)
    read = read_parity(tmp_path / "a", vocab_size=VOCAB_SIZE)
    assert read is not None
    again, again_layers, _ = adapted(family, n=5, k=3, seed=2)
    assert replay_parity(read, model_runner(again, again_layers)) == len(PROMPTS)


def test_record_says_what_the_model_does():
    model, layers, parity = recorded(n=5, k=2)
    names = sorted(layers)
    for tokens, prompt in zip(PROMPTS, parity.prompts, strict=True):
        with torch.no_grad(), trace_routes(layers) as trace:
            logits_TV = model(input_ids=torch.tensor([tokens])).logits[0]
        assert prompt.token_ids_T.tolist() == tokens
        assert prompt.top_ids_j.tolist() == logits_TV[-1].topk(16).indices.tolist()
        torch.testing.assert_close(prompt.top_logits_j, logits_TV[-1].topk(16).values)
        for index, name in enumerate(names):
            z_Tn = trace.logits[name][0].reshape(len(tokens), 5)
            best_T3 = z_Tn.topk(3).values
            margin_T = (best_T3[:, 1] - best_T3[:, 2]) / z_Tn.abs().amax(-1).clamp(min=1)
            routes_Tk = top_k_experts(z_Tn, 2).sort(-1).values
            assert torch.equal(prompt.routes_LTk[index].long(), routes_Tk)
            torch.testing.assert_close(prompt.margins_LT[index], margin_T)


def test_every_expert_active_gives_unbounded_margins():
    _, _, parity = recorded(n=3, k=3)
    assert all(torch.isposinf(prompt.margins_LT).all() for prompt in parity.prompts)


def test_recording_ignores_and_restores_what_training_set():
    model, layers, expected = recorded()

    def sampling(z_Tn, k):
        return sample_experts(z_Tn, k)

    for layer in layers.values():
        layer.select = sampling
    model.train()
    parity = record_parity(model, layers, PROMPTS)
    assert model.training
    assert all(layer.select is sampling for layer in layers.values())
    for found, prompt in zip(parity.prompts, expected.prompts, strict=True):
        assert torch.equal(found.routes_LTk, prompt.routes_LTk)
        assert torch.equal(found.top_logits_j, prompt.top_logits_j)


@pytest.mark.parametrize("part", ["router_nD", "a_nrD", "b_nOr", "routing_weight", "top_k"])
def test_another_adapter_is_refused(part):
    _, _, parity = recorded()
    model, layers, _ = adapted()
    layer = layers["model.layers.1.mlp.up_proj"]
    if part == "routing_weight":
        layer.routing_weight *= 1.05
    elif part == "top_k":
        for each in layers.values():
            each.top_k = 1
    else:
        with torch.no_grad():
            getattr(layer, part).mul_(-1 if part == "router_nD" else 1.05)
    with pytest.raises(ParityError, match=r"parity\.safetensors: prompt 0: "):
        replay_parity(parity, model_runner(model, layers))


def test_missing_layer_is_refused():
    _, _, parity = recorded()
    model, layers, _ = adapted(target_modules=("up_proj", "down_proj"))
    with pytest.raises(ParityError, match=r"\[6, 5, 2\] in the file, expected \[4, 5, 2\]"):
        replay_parity(parity, model_runner(model, layers))


def run_of(parity: Parity, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Routes and logits of an engine that agrees with the file in everything."""
    prompt = parity.prompts[index]
    names = [f"layer.{i}" for i in range(len(prompt.routes_LTk))]
    routes = {name: r.long().flip(-1) for name, r in zip(names, prompt.routes_LTk, strict=True)}
    logits_V = torch.full((VOCAB_SIZE,), float(prompt.top_logits_j.min()) - 1)
    logits_V[prompt.top_ids_j] = prompt.top_logits_j
    return routes, logits_V


def flip_route(parity: Parity, routes: dict[str, torch.Tensor], layer: int, position: int) -> None:
    """Swaps one active expert of four for one that is not."""
    route_k = routes[f"layer.{layer}"][position]
    route_k[0] = next(i for i in range(4) if i not in route_k.tolist())


def with_margin(parity: Parity, layer: int, position: int, margin: float) -> Parity:
    prompt = parity.prompts[1]
    margins_LT = prompt.margins_LT.clamp(min=0.01)
    margins_LT[layer, position] = margin
    prompts = list(parity.prompts)
    prompts[1] = replace(prompt, margins_LT=margins_LT)
    return replace(parity, prompts=tuple(prompts), route_tolerance=1e-4)


@pytest.fixture(scope="module")
def parity() -> Parity:
    return recorded()[2]


def test_order_of_experts_means_nothing(parity):
    assert compare_parity(parity, 1, *run_of(parity, 1)) is True


def test_flip_at_a_clear_choice_names_everything(parity):
    parity = with_margin(parity, 3, 6, 0.01)
    routes, logits_V = run_of(parity, 1)
    expected = parity.prompts[1].routes_LTk[3, 6].tolist()
    flip_route(parity, routes, 3, 6)
    found = routes["layer.3"][6].sort().values.tolist()
    with pytest.raises(ParityError) as caught:
        compare_parity(parity, 1, routes, logits_V)
    message = str(caught.value)
    assert "prompt 1: position 6: layer.3: " in message
    assert f"found experts {found}, expected {expected}" in message
    assert "\n" not in message


def test_flip_at_a_near_tie_is_allowed_and_not_decisive(parity):
    parity = with_margin(parity, 3, 6, 5e-5)
    routes, logits_V = run_of(parity, 1)
    flip_route(parity, routes, 3, 6)
    flip_route(parity, routes, 4, 6)  # a consequence at the same position
    flip_route(parity, routes, 0, 9)  # and at a later one
    assert compare_parity(parity, 1, routes, logits_V + 1) is False
    assert compare_parity(parity, 0, *run_of(parity, 0)) is True


def test_near_tie_excuses_nothing_before_it(parity):
    parity = with_margin(parity, 3, 6, 5e-5)
    routes, logits_V = run_of(parity, 1)
    flip_route(parity, routes, 3, 6)
    flip_route(parity, routes, 4, 5)
    with pytest.raises(ParityError, match=r"position 5: layer\.4"):
        compare_parity(parity, 1, routes, logits_V)


def test_near_tie_of_a_layer_that_agrees_excuses_no_other(parity):
    parity = with_margin(parity, 3, 6, 5e-5)
    routes, logits_V = run_of(parity, 1)
    flip_route(parity, routes, 4, 6)
    with pytest.raises(ParityError, match=r"position 6: layer\.4"):
        compare_parity(parity, 1, routes, logits_V)


def test_slack_widens_the_route_tolerance(parity):
    parity = with_margin(parity, 3, 6, 5e-3)
    routes, logits_V = run_of(parity, 1)
    flip_route(parity, routes, 3, 6)
    with pytest.raises(ParityError):
        compare_parity(parity, 1, routes, logits_V, slack=49)
    assert compare_parity(parity, 1, routes, logits_V, slack=51) is False


def test_logits_agree_within_the_tolerance(parity):
    routes, logits_V = run_of(parity, 1)
    prompt = parity.prompts[1]
    token = int(prompt.top_ids_j[4])
    allowed = parity.logit_tolerance * max(1.0, abs(float(prompt.top_logits_j[4])))
    for sign in (-1, 1):
        good, bad = logits_V.clone(), logits_V.clone()
        good[token] += sign * 0.9 * allowed
        assert compare_parity(parity, 1, routes, good) is True
        bad[token] += sign * 1.1 * allowed
        with pytest.raises(ParityError, match=f"position 13: token {token}: found logit"):
            compare_parity(parity, 1, routes, bad)
        assert compare_parity(parity, 1, routes, bad, slack=1.2) is True


def test_a_token_that_was_not_at_the_top_cannot_be_there(parity):
    routes, logits_V = run_of(parity, 1)
    other = next(i for i in range(VOCAB_SIZE) if i not in parity.prompts[1].top_ids_j)
    logits_V[other] = parity.prompts[1].top_logits_j[0]
    with pytest.raises(ParityError, match=f"token {other}: found logit"):
        compare_parity(parity, 1, routes, logits_V)


def test_prompt_of_a_larger_vocabulary_is_refused():
    model, layers, parity = recorded()
    prompt = parity.prompts[0]
    tokens_T = torch.cat([prompt.token_ids_T[:-1], torch.tensor([VOCAB_SIZE])])
    forged = replace(parity, prompts=(replace(prompt, token_ids_T=tokens_T),))
    with pytest.raises(ParityError, match=f"token id {VOCAB_SIZE} in a prompt"):
        replay_parity(forged, model_runner(model, layers))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_never_agree(parity, value):
    routes, logits_V = run_of(parity, 0)
    for token in (int(parity.prompts[0].top_ids_j[0]), 0):
        broken = logits_V.clone()
        broken[token] = value
        with pytest.raises(ParityError):
            compare_parity(parity, 0, routes, broken)


def test_smaller_vocabulary_is_refused(parity):
    routes, logits_V = run_of(parity, 0)
    size = int(parity.prompts[0].top_ids_j.max())
    with pytest.raises(ParityError, match=f"vocabulary size {size}"):
        compare_parity(parity, 0, routes, logits_V[:size])


def test_one_decisive_prompt_is_needed_in_float32_only(parity):
    parity = with_margin(parity, 3, 6, 5e-5)
    parity = replace(parity, prompts=parity.prompts[1:2] * 3)
    calls = 0

    def run(token_ids_T):
        nonlocal calls
        routes, logits_V = run_of(parity, calls)
        if calls < flipped:
            flip_route(parity, routes, 3, 6)
        calls += 1
        return routes, logits_V

    flipped = 2
    assert replay_parity(parity, run) == 1
    calls, flipped = 0, 3
    with pytest.raises(ParityError, match="all 3 prompts"):
        replay_parity(parity, run)
    calls = 0
    assert replay_parity(parity, run, slack=2.0) == 0
