"""One greedy request to an engine in this process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from remix_runtime.contracts import Engine, GenerationRequest, SamplingParams

_NUMBERS = itertools.count()


async def greedy(
    engine: Engine,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    digest: str | None = None,
    tenant: str = "",
) -> tuple[list[float], list[int]]:
    """When each token came, on the clock of `time.perf_counter`, and which it was; end of sequence
    is ignored."""
    request = GenerationRequest(
        request_id=f"benchmark-{next(_NUMBERS)}",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True),
        digest=digest,
        tenant=tenant,
    )
    times: list[float] = []
    tokens: list[int] = []
    async for event in engine.generate(request):
        times += [time.perf_counter()] * len(event.token_ids)
        tokens += event.token_ids
    return times, tokens
