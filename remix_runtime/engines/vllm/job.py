"""One request on its way: what vLLM gives becomes token events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from remix_runtime.contracts import (
    FinishReason,
    GenerationRequest,
    PositionLogprobs,
    TokenEvent,
    TokenLogprob,
)
from remix_runtime.engines.text import TextStream


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


class Job:
    """`events` is what the caller of `generate` reads."""

    def __init__(
        self,
        request: GenerationRequest,
        decode: Callable[[Sequence[int]], str],
        end_token_ids: frozenset[int],
    ) -> None:
        self.request = request
        self.events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self.run: asyncio.Task[None] | None = None
        """While vLLM has it."""
        self.turn_came: int | None = None
        """How many adapters' requests had been admitted when others first passed this one."""
        self._text = TextStream(decode, request.prompt_token_ids, request.params.stop)
        params = request.params
        self._ends = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self._ends |= end_token_ids
        self._generated = 0
        self._arrived = time.monotonic()
        self._queue_seconds: float | None = None
        self._told = False

    def admitted(self) -> None:
        self._queue_seconds = time.monotonic() - self._arrived

    def take(
        self, token_ids: Sequence[int], logprobs: Sequence[PositionLogprobs] | None
    ) -> FinishReason | None:
        """New tokens, in order; those after an end are dropped. Returns how the request ended."""
        text, reason, taken = "", None, 0
        for token_id in token_ids:
            taken += 1
            self._generated += 1
            if token_id in self._ends:
                text += self._text.flush()
                reason = FinishReason.STOP
                break
            text += self._text.push(token_id)
            if self._text.stopped:
                reason = FinishReason.STOP
                break
            if self._generated >= self.request.params.max_tokens:
                text += self._text.flush()
                reason = FinishReason.STOP if self._text.stopped else FinishReason.LENGTH
                break
        self._put(token_ids[:taken], text, logprobs and logprobs[:taken], reason)
        return reason

    def abort(self) -> None:
        self._put((), self._text.flush(), None, FinishReason.ABORT)

    def _put(
        self,
        token_ids: Sequence[int],
        text: str,
        logprobs: Sequence[PositionLogprobs] | None,
        reason: FinishReason | None,
    ) -> None:
        queue_seconds = None if self._told else self._queue_seconds
        self._told = True
        self.events.put_nowait(
            TokenEvent(
                token_ids=tuple(token_ids),
                text=text,
                logprobs=None if logprobs is None else tuple(logprobs),
                finish_reason=reason,
                queue_seconds=queue_seconds,
            )
        )


def logprobs_of(position: Mapping[int, Ranked], chosen: int, count: int) -> PositionLogprobs:
    """The `count` most likely tokens, and the chosen one, of a position of `NewTokens`."""
    ranked = sorted(position.items(), key=lambda item: (item[1].rank, item[0]))
    top = [TokenLogprob(token_id=i, logprob=p.logprob) for i, p in ranked if p.rank <= count]
    return PositionLogprobs(
        chosen=TokenLogprob(token_id=chosen, logprob=position[chosen].logprob),
        top=tuple(top[:count]),
    )
