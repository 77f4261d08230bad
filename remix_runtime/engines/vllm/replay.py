"""Replays an adapter's parity file on vLLM, as requests among the others.

Until the replay is over no other request may name the adapter, so that all tokens in its slot are
the replay's, in order. vLLM gives log-probabilities: they are the logits up to a constant, which is
taken from the recorded ones.

Shape suffixes: T tokens, k activated experts, V vocabulary.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint import Parity, ParityPrompt
from remix_runtime.adapter.parity import compare_parity, require_decisive
from remix_runtime.contracts import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from remix_runtime.engines.vllm.backend import Backend  # needs vLLM

_LEAST_LOGPROBS = 1024


async def replay_on(
    backend: Backend, parity: Parity, lora: tuple[str, int, Path], *, slack: float
) -> None:
    """Raises `ParityError`. Only logits are compared where the workers cannot report routes."""
    decisive = 0
    for index, prompt in enumerate(parity.prompts):
        await backend.on_workers("remix_record_routes", lora[1])
        logits_V = await _last_logits(backend, prompt, lora)
        routes: dict[str, Tensor] = {}
        for part in await backend.on_workers("remix_take_routes"):
            routes |= {name: torch.tensor(rows) for name, rows in part.items()}
        decisive += compare_parity(
            parity, index, routes or _recorded(prompt), logits_V, slack=slack
        )
    require_decisive(parity, decisive, slack=slack)


async def _last_logits(
    backend: Backend, prompt: ParityPrompt, lora: tuple[str, int, Path]
) -> Tensor:
    # Not of the whole vocabulary, which takes vLLM half a second: what is less likely than all of
    # these is no match for the recorded ones, the most likely of their adapter.
    count = min(backend.vocab_size, max(_LEAST_LOGPROBS, 4 * len(prompt.top_ids_j)))
    request = GenerationRequest(
        request_id=f"parity-{uuid.uuid4()}",
        prompt_token_ids=tuple(prompt.token_ids_T.tolist()),
        params=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=count),
    )
    # A salt of its own: a cached prefix would leave tokens without routes.
    outputs = backend.generate(request, frozenset(), lora, salt=request.request_id)
    logits_V = torch.full((backend.vocab_size,), -torch.inf)
    async for output in outputs:
        for position in output.logprobs or ():
            ids = torch.tensor(list(position))
            logits_V[ids] = torch.tensor([p.logprob for p in position.values()])
    offset = (prompt.top_logits_j - logits_V[prompt.top_ids_j]).median()
    return logits_V + offset


def _recorded(prompt: ParityPrompt) -> dict[str, Tensor]:
    return {f"{i:05}": routes_Tk.long() for i, routes_Tk in enumerate(prompt.routes_LTk)}
