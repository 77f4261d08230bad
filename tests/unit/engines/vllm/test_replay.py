"""The replay of a parity file, on a vLLM that answers as the model does."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from remix_runtime.adapter.checkpoint import Parity
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.adapter.parity import model_runner, record_parity
from remix_runtime.contracts import GenerationRequest
from remix_runtime.engines.vllm.job import NewTokens
from remix_runtime.engines.vllm.replay import replay_on
from remix_runtime.errors import ParityError
from tests.models import random_checkpoint, tiny_model

LORA = ("digest", 7, Path("folder"))
PROMPTS = [[5, 9, 2], list(range(30))]


@dataclass
class Found:
    logprob: float
    rank: int


class Answers:
    """Two ranks that see the same layers, and a third that has the rest."""

    vocab_size = tiny_model("llama-32").config.vocab_size

    def __init__(self, run: Any, *, tells_routes: bool = True, shift: float = 0.0) -> None:
        self.run, self.tells_routes, self.shift = run, tells_routes, shift
        self.salts: set[str] = set()
        self._routes: dict[str, list[list[int]]] = {}

    async def on_workers(self, method: str, *args: Any) -> list[Any]:
        if method == "remix_record_routes":
            assert args == (LORA[1],)
            return [None] * 3
        names = sorted(self._routes)
        first = {name: self._routes[name] for name in names[:2]}
        return [first, first, {name: self._routes[name] for name in names[2:]}]

    async def generate(
        self, request: GenerationRequest, ends: frozenset[int], lora: Any, salt: str
    ) -> AsyncGenerator[NewTokens, None]:
        assert lora == LORA
        self.salts.add(salt)
        routes, logits_V = self.run(torch.tensor(request.prompt_token_ids))
        if self.tells_routes:
            self._routes = {name: found.tolist() for name, found in routes.items()}
        logprobs_V = logits_V.log_softmax(0)
        logprobs_V[int(logits_V.argmax())] += self.shift
        yield NewTokens([0], [{i: Found(p, 0) for i, p in enumerate(logprobs_V.tolist())}])


def adapted(seed: int) -> tuple[Parity, Any]:
    model = tiny_model("llama-32")
    layers = attach_checkpoint(model, random_checkpoint(model, n=4, k=2, r=2, seed=seed))
    return record_parity(model, layers, PROMPTS), model_runner(model, layers)


async def replay(answers: Answers, parity: Parity, *, slack: float = 1.0) -> None:
    await replay_on(cast(Any, answers), parity, LORA, slack=slack)


@pytest.mark.parametrize("tells_routes", [True, False])
async def test_the_same_model_passes_without_a_cached_prefix(tells_routes: bool) -> None:
    parity, run = adapted(1)
    answers = Answers(run, tells_routes=tells_routes)
    await replay(answers, parity)
    assert len(answers.salts) == len(PROMPTS)
    assert "" not in answers.salts


async def test_other_routes_are_refused() -> None:
    (parity, _), (_, run) = adapted(1), adapted(2)
    with pytest.raises(ParityError, match="found experts"):
        await replay(Answers(run), parity)


async def test_other_logits_are_refused_though_a_constant_is_free() -> None:
    parity, run = adapted(1)
    with pytest.raises(ParityError, match="found logit"):
        await replay(Answers(run, shift=0.5), parity)
    await replay(Answers(run, shift=0.5), parity, slack=2.0**11)
