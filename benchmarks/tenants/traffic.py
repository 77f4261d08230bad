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

from benchmarks.adapters import write_random_adapters
from benchmarks.greedy import greedy
from benchmarks.rounds import percentile
from benchmarks.shape import AdapterShape
from remix_runtime.contracts import Engine
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine

PROMPT_TOKENS, NEW_TOKENS = 32, 16


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    """Seconds from the start."""
    tenant: str
    digest: str


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


def milliseconds(seconds: Sequence[float]) -> list[int]:
    """How many there are, their median and their p99 in milliseconds."""
    return [len(seconds), *(round(1000 * percentile(seconds, share)) for share in (0.5, 0.99))]


async def play(engine: Engine, arrivals: Sequence[Arrival]) -> list[Served]:
    """Sends every request at its time, whether the engine keeps up or not."""
    start = time.perf_counter()
    vocabulary = range(engine.model.vocab_size)

    async def one(number: int, arrival: Arrival) -> Served:
        await asyncio.sleep(arrival.at - (time.perf_counter() - start))
        prompt = random.Random(number).choices(vocabulary, k=PROMPT_TOKENS)
        sent, options = time.perf_counter(), {"digest": arrival.digest, "tenant": arrival.tenant}
        times, _ = await greedy(engine, prompt, NEW_TOKENS, **options)
        return Served(arrival, times[0] - sent, tuple(at - start for at in times))

    return list(await asyncio.gather(*(one(i, a) for i, a in enumerate(arrivals))))


@asynccontextmanager
async def serving(
    config: EmbeddedConfig, num_adapters: int
) -> AsyncIterator[tuple[EmbeddedEngine, list[str]]]:
    """An engine and the digests of that many random adapters, loaded."""
    shape = AdapterShape(4, 2, 4)
    with tempfile.TemporaryDirectory() as name:
        folders = write_random_adapters(Path(name), Path(config.model), shape, num_adapters)
        engine = EmbeddedEngine(config)
        await engine.start()
        try:
            yield engine, [(await engine.load_adapter(folder)).digest for folder in folders]
        finally:
            await engine.stop()
