"""One request on its way through vLLM, and vLLM's log-probabilities in our words."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from remix_runtime.contracts import GenerationRequest, PositionLogprobs, TokenLogprob
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.front import Prepared, Stream


class Ranked(Protocol):
    """vLLM's `Logprob`."""

    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class NewTokens:
    """What a step of vLLM brought for one request."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Ranked]] | None
    """By position: the chosen token's and those of the most likely tokens."""
    prompt_logprobs: Sequence[Mapping[int, Ranked] | None] | None = None
    """The same for the tokens of the prompt, once."""
    cached_tokens: int | None = None
    """Of the prompt, in vLLM's prefix cache, once."""


class Job(Stream):
    """A request from its arrival to its last token."""

    def __init__(
        self, request: GenerationRequest, prepared: Prepared, completion: Completion
    ) -> None:
        super().__init__(request, prepared)
        self.completion = completion
        self.run: asyncio.Task[None] | None = None
        """The task that reads vLLM's outputs, while vLLM has the request."""
        self.turn_came: int | None = None
        """How many adapters' requests had been admitted when others first passed this one."""


def logprobs_of(new: NewTokens, count: int | None) -> list[PositionLogprobs] | None:
    """The log-probabilities of the chosen token and of the `count` most likely ones, by position.
    None where they are not wanted."""
    if count is None or new.logprobs is None:
        return None
    return [
        _position(ranked, chosen, count)
        for ranked, chosen in zip(new.logprobs, new.token_ids, strict=True)
    ]


def prompt_logprobs_of(
    new: NewTokens, prompt_token_ids: Sequence[int], count: int | None
) -> list[PositionLogprobs | None] | None:
    """The same for the tokens of the prompt, where this output brings them."""
    if count is None or new.prompt_logprobs is None:
        return None
    return [
        None if ranked is None else _position(ranked, token_id, count)
        for ranked, token_id in zip(new.prompt_logprobs, prompt_token_ids, strict=True)
    ]


def _position(position: Mapping[int, Ranked], chosen: int, count: int) -> PositionLogprobs:
    ranked = sorted(position.items(), key=lambda item: (item[1].rank, item[0]))
    # Tokens that a grammar does not allow have no probability in vLLM.
    likely = [(i, p) for i, p in ranked if p.rank <= count and math.isfinite(p.logprob)]
    top = [TokenLogprob(token_id=i, logprob=p.logprob) for i, p in likely]
    return PositionLogprobs(
        chosen=TokenLogprob(token_id=chosen, logprob=position[chosen].logprob),
        top=tuple(top[:count]),
    )
