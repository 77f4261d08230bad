"""Traffic of several tenants on an engine in this process, and what each request met."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from benchmarks.adapters import AdapterShape, write_random_adapter
from remix_runtime.base_model import without_weights
from remix_runtime.contracts import Engine, GenerationRequest, SamplingParams
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine

TARGETS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    """Seconds from the start."""
    tenant: str
    adapter: str | None
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    arrival: Arrival
    first_token: float
    """Seconds from its arrival."""
    token_times: tuple[float, ...]
    """Seconds from the start."""


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    rng, times, now = random.Random(seed), [], 0.0
    while (now := now + rng.expovariate(rate)) < seconds:
        times.append(now)
    return times


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(served: Sequence[Served], share: float) -> float:
    return 1000 * percentile([item.first_token for item in served], share)


async def play(engine: Engine, arrivals: Sequence[Arrival]) -> list[Served]:
    """Sends every request at its time, whether the engine keeps up or not."""
    start = time.perf_counter()
    vocabulary = engine.model.vocab_size

    async def one(number: int, arrival: Arrival) -> Served:
        await asyncio.sleep(arrival.at - (time.perf_counter() - start))
        rng = random.Random(number)
        request = GenerationRequest(
            request_id=f"traffic-{start}-{number}",
            prompt_token_ids=tuple(rng.choices(range(vocabulary), k=arrival.prompt_tokens)),
            params=SamplingParams(max_tokens=arrival.new_tokens, temperature=0, ignore_eos=True),
            digest=arrival.adapter,
            tenant=arrival.tenant,
        )
        sent, times = time.perf_counter() - start, []
        async for event in engine.generate(request):
            times += [time.perf_counter() - start] * len(event.token_ids)
        return Served(arrival, times[0] - sent, tuple(times))

    return list(await asyncio.gather(*(one(i, a) for i, a in enumerate(arrivals))))


@asynccontextmanager
async def serving(
    config: EmbeddedConfig, num_adapters: int
) -> AsyncIterator[tuple[EmbeddedEngine, list[str]]]:
    """An engine and the digests of that many random adapters, loaded."""
    model = without_weights(AutoConfig.from_pretrained(config.model))
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(seed) for seed in range(num_adapters)]
        for seed, folder in enumerate(folders):
            write_random_adapter(folder, model, AdapterShape(4, 2, 4), TARGETS, seed)
        engine = EmbeddedEngine(config)
        await engine.start()
        try:
            yield engine, [(await engine.load_adapter(folder)).digest for folder in folders]
        finally:
            await engine.stop()
