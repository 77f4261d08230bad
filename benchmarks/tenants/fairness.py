"""One tenant at ten times the load of another: what the quiet one feels, and the service of both.

    python -m benchmarks.tenants.fairness [--base FOLDER] [--rate 0.5] [--seconds 60]

First the quiet tenant alone, then the same requests beside the loud one: the p99 of its time to
first token should at most double. Then both send more than they can be served, the loud one ten
times as much: while both have requests waiting, the difference of their weighted service should
stay within the bound of the VTC paper. Service is seen from outside, a prompt with its first token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import typer

from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import percentile
from benchmarks.tenants import traffic
from benchmarks.tenants.traffic import Arrival, Served, milliseconds, play, poisson, serving
from remix_runtime.engines.embedded import EmbeddedConfig
from remix_runtime.fairness.queue import OUTPUT_WEIGHT, PROMPT_WEIGHT, service_bound

LOAD = 10
MAX_RUNNING = 8


def service_difference(served: Sequence[Served]) -> float:
    """The largest change of the difference, up to the last first token of the quiet tenant: until
    then both had requests waiting."""
    end = max(item.token_times[0] for item in served if item.arrival.tenant == "quiet")
    events = [
        (at, item.arrival.tenant, OUTPUT_WEIGHT + (not i) * PROMPT_WEIGHT * traffic.PROMPT_TOKENS)
        for item in served
        for i, at in enumerate(item.token_times)
        if at <= end
    ]
    difference = low = high = 0
    for _, tenant, tokens in sorted(events):
        difference += tokens if tenant == "loud" else -tokens
        low, high = min(low, difference), max(high, difference)
    return high - low


async def measure(
    config: EmbeddedConfig, rate: float, seconds: float, backlog: int
) -> tuple[dict[str, list[float]], float, int]:
    """Seconds to the first token by who waited, the difference of service, its bound."""
    async with serving(config, 2) as (engine, digests):

        def requests(tenant: str, times: Sequence[float]) -> list[Arrival]:
            return [Arrival(at, tenant, digests[tenant == "loud"]) for at in times]

        quiet = requests("quiet", poisson(rate, seconds, seed=1))
        loud = requests("loud", poisson(LOAD * rate, seconds, seed=2))
        alone = await play(engine, quiet)
        both = await play(engine, quiet + loud)
        flood = requests("loud", [0.0] * backlog * LOAD) + requests("quiet", [0.0] * backlog)
        difference = service_difference(await play(engine, flood))
        batch_tokens = engine.stats().kv_tokens_total + MAX_RUNNING
    waited = {"quiet, alone": [item.first_token for item in alone]}
    for tenant, name in (("quiet", "quiet"), ("loud", f"loud, x{LOAD}")):
        waited[name] = [item.first_token for item in both if item.arrival.tenant == tenant]
    # Of what the batch can really hold: requests, not KV memory, fill it here.
    held = min(batch_tokens, MAX_RUNNING * (traffic.PROMPT_TOKENS + traffic.NEW_TOKENS))
    return waited, difference, service_bound(traffic.PROMPT_TOKENS, held)


def main(
    base: Base, rate: float = 0.5, seconds: float = 60.0, backlog: int = 30, out: Out = None
) -> None:
    """Load an engine with a quiet tenant of `rate` requests per second, then with a loud one too;
    at last with `backlog` waiting requests of the quiet one, ten times as many of the other."""
    config = EmbeddedConfig(
        model=str(base), max_running=MAX_RUNNING, max_waiting=100_000, kv_cache_bytes=1 << 28
    )
    waited, difference, bound = asyncio.run(measure(config, rate, seconds, backlog))
    rows = [[name, *milliseconds(times)] for name, times in waited.items()]
    ratio = percentile(waited["quiet"], 0.99) / percentile(waited["quiet, alone"], 0.99)
    publish(
        out,
        "Fairness of tenants",
        Table(["tenant", "requests", "TTFT p50 ms", "p99 ms"], rows),
        f"quiet p99 beside the loud one: {ratio:.2f} times its p99 alone (goal: at most 2)",
        f"service difference {difference:.0f} weighted tokens, bound {bound}",
    )


if __name__ == "__main__":
    typer.run(main)
