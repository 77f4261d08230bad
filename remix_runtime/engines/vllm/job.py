"""One request on its way through vLLM, and vLLM's log-probabilities in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from remix_runtime.contracts import GenerationRequest, PositionLogprobs, TokenLogprob
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.front import Stream


class Ranked(Protocol):
    """vLLM's `Logprob`."""

    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class NewTokens:
    """What a step of vLLM brought for one request."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Ranked]] | None
    """By position, of the chosen token and the most likely ones."""


class Job(Stream):
    """A request from its arrival to its last token."""

    def __init__(self, request: GenerationRequest, completion: Completion) -> None:
        super().__init__(request)
        self.completion = completion
        self.run: asyncio.Task[None] | None = None
        """While vLLM has it."""
        self.turn_came: int | None = None
        """How many adapters' requests had been admitted when others first passed this one."""


def logprobs_of(new: NewTokens, count: int | None) -> list[PositionLogprobs] | None:
    """The `count` most likely tokens of each position, and the chosen one; None: not wanted."""
    if count is None or new.logprobs is None:
        return None
    return [
        _position(ranked, chosen, count)
        for ranked, chosen in zip(new.logprobs, new.token_ids, strict=True)
    ]


def _position(position: Mapping[int, Ranked], chosen: int, count: int) -> PositionLogprobs:
    ranked = sorted(position.items(), key=lambda item: (item[1].rank, item[0]))
    top = [TokenLogprob(token_id=i, logprob=p.logprob) for i, p in ranked if p.rank <= count]
    return PositionLogprobs(
        chosen=TokenLogprob(token_id=chosen, logprob=position[chosen].logprob),
        top=tuple(top[:count]),
    )
