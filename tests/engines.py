"""What tests do with an engine: run requests and collect what comes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remix_runtime.contracts import (
    Engine,
    FinishReason,
    GenerationRequest,
    PositionLogprobs,
    SamplingParams,
)

_ids = itertools.count()


@dataclass
class Completion:
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[PositionLogprobs]
    num_events: int
    queue_seconds: float | None


def request(
    prompt: list[int] | tuple[int, ...],
    adapter: str | None = None,
    *,
    tenant: str = "",
    **params: Any,
) -> GenerationRequest:
    params = {"max_tokens": 8, "temperature": 0.0} | params
    return GenerationRequest(
        request_id=f"test-{next(_ids)}",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(**params),
        digest=adapter,
        tenant=tenant,
    )


class NoText:
    """A speller whose tokens write nothing, for requests whose text is of no interest."""

    special_tokens: Mapping[str, int] = {}

    def token_bytes(self, token_id: int) -> bytes:
        return b""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return ""


async def complete(engine: Engine, item: GenerationRequest) -> Completion:
    events = [event async for event in engine.generate(item)]
    assert events[-1].finish_reason is not None
    assert all(event.finish_reason is None for event in events[:-1])
    return Completion(
        token_ids=[token for event in events for token in event.token_ids],
        text="".join(event.text for event in events),
        finish_reason=events[-1].finish_reason,
        logprobs=[position for event in events for position in event.logprobs or ()],
        num_events=len(events),
        queue_seconds=events[0].queue_seconds,
    )


async def complete_all(engine: Engine, items: list[GenerationRequest]) -> list[Completion]:
    return list(await asyncio.gather(*(complete(engine, item) for item in items)))
