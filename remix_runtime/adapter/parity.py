"""Checks that an engine computes what training computed: prompts are recorded with the trained
adapter and replayed when the adapter is loaded.

Rules of the comparison, prompt by prompt:

1. Positions are compared in order. Up to the first position where a route differs, all agree.
2. There, a layer whose recorded margin is below the route tolerance may differ: it is a near-tie
   that rounding can flip. If no differing layer has such a margin, the adapter is refused.
3. A flip changes what every later layer and position sees. So after an allowed flip the rest of the
   prompt is not compared, and the prompt is not decisive. `replay_parity` wants at least one
   decisive prompt.
4. Without a flip, the top logits of the last position agree within the logit tolerance, and no
   other token's logit is above the lowest of them by more.

Shape suffixes: T tokens, L adapted layers in sorted order of their names, n experts, k activated
experts, V vocabulary, j recorded logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from remix_runtime.adapter.checkpoint.parity_file import PARITY_FILE, Parity, ParityPrompt
from remix_runtime.adapter.layers import RemixLinear, trace_routes
from remix_runtime.adapter.routing import top_k_experts
from remix_runtime.errors import ParityError

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # seconds to import

TOP_LOGITS = 16
# A 135M model with a random adapter on all feed-forward linears, 9,450 routes: float32 with another
# attention implementation moves the logits by 1e-6 and no route; bfloat16 moves them by 2e-2 and
# flips routes of margins up to 4e-2. So these pass every float32 path and stop a coarser one.
ROUTE_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 1e-3
PARITY_SLACK = {
    torch.float32: 1.0,
    torch.float16: 2.0**8,
    torch.bfloat16: 2.0**11,
    torch.int8: 2.0**10,
}
"""How much coarser a type is than float32, for the tolerances of parity files; int8 stands for
weights of 8 bits and activations in float32."""

RunPrompt = Callable[[Tensor], tuple[Mapping[str, Tensor], Tensor]]
"""token ids [T] to (module name to expert indices [T, k] in any order, last logits [V])."""


def record_parity(
    model: nn.Module,
    layers: Mapping[str, RemixLinear],
    prompts: Sequence[Sequence[int]],
    *,
    route_tolerance: float = ROUTE_TOLERANCE,
    logit_tolerance: float = LOGIT_TOLERANCE,
) -> Parity:
    """Records what `model`, with `layers` attached, does for each prompt (token ids, not empty).

    Runs in eval mode with the deterministic top-k, whatever training has set, and restores both.
    """
    return Parity(
        prompts=tuple(_record(model, layers, prompt) for prompt in prompts),
        route_tolerance=route_tolerance,
        logit_tolerance=logit_tolerance,
    )


def replay_parity(parity: Parity, run: RunPrompt, *, slack: float = 1.0) -> int:
    """Runs and compares every prompt; returns how many were decisive.

    `slack` multiplies both tolerances: 1 for float32; an engine in a coarser type states how much
    coarser it is, and then no prompt has to be decisive. Raises `ParityError`.
    """
    decisive = 0
    for index, prompt in enumerate(parity.prompts):
        routes, logits_V = run(prompt.token_ids_T)
        decisive += compare_parity(parity, index, routes, logits_V, slack=slack)
    require_decisive(parity, decisive, slack=slack)
    return decisive


def require_decisive(parity: Parity, decisive: int, *, slack: float = 1.0) -> None:
    """Raises `ParityError` where every prompt had a flipped near-tie, so that none was decisive."""
    if not decisive and slack <= 1:
        raise ParityError(
            f"{PARITY_FILE}: found routes at near-ties flipped in all {len(parity.prompts)} "
            "prompts, expected one without a flip; write the adapter again with other prompts"
        )


def compare_parity(
    parity: Parity,
    index: int,
    routes: Mapping[str, Tensor],
    logits_V: Tensor,
    *,
    slack: float = 1.0,
) -> bool:
    """Compares one replayed prompt by the rules above.

    `routes`: module name to expert indices [T, k] in any order. Returns whether the comparison was
    decisive. Raises `ParityError` that names prompt, position, layer, found and expected.
    """
    prompt = parity.prompts[index]
    where = f"{PARITY_FILE}: prompt {index}"
    found_LTk = _stack_routes(routes)
    if found_LTk.shape != prompt.routes_LTk.shape:
        raise ParityError(
            f"{where}: found routes of [layers, tokens, top_k] {list(prompt.routes_LTk.shape)} in "
            f"the file, expected {list(found_LTk.shape)} as the adapter has"
        )
    differs_LT = (found_LTk != prompt.routes_LTk.long()).any(-1)
    if differs_LT.any():
        position = int(differs_LT.any(0).nonzero()[0])
        differs_L = differs_LT[:, position]
        margins_L = prompt.margins_LT[:, position]
        if (margins_L[differs_L] < slack * parity.route_tolerance).any():
            return False
        layer = int(differs_L.nonzero()[0])
        raise ParityError(
            f"{where}: position {position}: {sorted(routes)[layer]}: found experts "
            f"{found_LTk[layer, position].tolist()}, expected "
            f"{prompt.routes_LTk[layer, position].tolist()} (margin {margins_L[layer]:.3g}, "
            f"tolerance {slack * parity.route_tolerance:.3g})"
        )
    _compare_logits(where, prompt, logits_V, slack * parity.logit_tolerance)
    return True


def model_runner(model: PreTrainedModel, layers: Mapping[str, RemixLinear]) -> RunPrompt:
    """Makes a `RunPrompt` of a transformers model with `layers` attached, the readable
    reference."""
    vocab_size = model.get_input_embeddings().weight.shape[0]

    def run(token_ids_T: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        if int(token_ids_T.max()) >= vocab_size:
            raise ParityError(
                f"{PARITY_FILE}: found token id {int(token_ids_T.max())} in a prompt, "
                f"expected one below the vocabulary size {vocab_size}"
            )
        _, routes, logits_V = run_prompt(model, layers, token_ids_T)
        return routes, logits_V

    return run


def run_prompt(
    model: nn.Module, layers: Mapping[str, RemixLinear], token_ids_T: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What a server computes for one prompt: router logits [T, n] and routes [T, k] by module name,
    and the last logits [V]; on the CPU. In eval mode with the deterministic top-k, whatever
    training has set, which is restored."""
    was_training = model.training
    selects = {name: layer.select for name, layer in layers.items()}
    model.eval()
    for layer in layers.values():
        layer.select = top_k_experts
    try:
        device = next(model.parameters()).device
        with torch.no_grad(), trace_routes(dict(layers)) as trace:
            logits_11V = model(
                input_ids=token_ids_T.to(device)[None], use_cache=False, logits_to_keep=1
            ).logits
    finally:
        model.train(was_training)
        for name, layer in layers.items():
            layer.select = selects[name]
    logits = {name: z[0].flatten(0, -2).float().cpu() for name, z in trace.logits.items()}
    routes = {name: s[0].flatten(0, -2).cpu() for name, s in trace.selections.items()}
    return logits, routes, logits_11V[0, -1].float().cpu()


def _record(
    model: nn.Module, layers: Mapping[str, RemixLinear], prompt: Sequence[int]
) -> ParityPrompt:
    token_ids_T = torch.tensor(prompt, dtype=torch.int64)
    logits, routes, logits_V = run_prompt(model, layers, token_ids_T)
    k = next(iter(routes.values())).shape[-1]
    margins_LT = torch.stack([_margins(logits[name], k) for name in sorted(logits)])
    top = torch.sort(logits_V, descending=True, stable=True)
    return ParityPrompt(
        token_ids_T=token_ids_T,
        routes_LTk=_stack_routes(routes).to(torch.uint8),
        margins_LT=margins_LT,
        top_ids_j=top.indices[:TOP_LOGITS],
        top_logits_j=top.values[:TOP_LOGITS],
    )


def _margins(z_Tn: Tensor, k: int) -> Tensor:
    """Distance between the last chosen and the first refused logit, as `ParityPrompt` says."""
    if k == z_Tn.shape[-1]:
        return torch.full(z_Tn.shape[:-1], torch.inf)
    sorted_Tn = z_Tn.sort(dim=-1, descending=True).values
    return (sorted_Tn[:, k - 1] - sorted_Tn[:, k]) / z_Tn.abs().amax(-1).clamp(min=1.0)


def _stack_routes(routes: Mapping[str, Tensor]) -> Tensor:
    """int64 [L, T, k], layers in sorted order, experts ascending."""
    return torch.stack([routes[name].long().cpu().sort(-1).values for name in sorted(routes)])


def _compare_logits(where: str, prompt: ParityPrompt, logits_V: Tensor, tolerance: float) -> None:
    logits_V = logits_V.float().cpu()
    position = f"{where}: position {len(prompt.token_ids_T) - 1}"
    if int(prompt.top_ids_j.max()) >= len(logits_V):
        raise ParityError(
            f"{position}: found token id {int(prompt.top_ids_j.max())} in the file, "
            f"expected one below the vocabulary size {len(logits_V)}"
        )
    found_j, expected_j = logits_V[prompt.top_ids_j], prompt.top_logits_j
    allowed_j = tolerance * expected_j.abs().clamp(min=1.0)
    wrong_j = ~((found_j - expected_j).abs() <= allowed_j)  # so that NaN is wrong
    if wrong_j.any():
        i = int(wrong_j.nonzero()[0])
        raise ParityError(
            f"{position}: token {int(prompt.top_ids_j[i])}: found logit {found_j[i]:.6g}, "
            f"expected {expected_j[i]:.6g} within {allowed_j[i]:.3g}"
        )
    others_V = logits_V.index_fill(0, prompt.top_ids_j, -torch.inf)
    highest = int(others_V.argmax())
    limit = expected_j.min() + allowed_j[expected_j.argmin()]
    if not others_V[highest] <= limit:
        raise ParityError(
            f"{position}: token {highest}: found logit {others_V[highest]:.6g}, "
            f"expected at most {limit:.6g}, the lowest that the file lists"
        )
