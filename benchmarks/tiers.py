"""Far more adapters than slots against as many: time to first token, slot fills, memory.

    python -m benchmarks.tiers [--base FOLDER] [--rate 2] [--seconds 60]

Three runs under the same random traffic over 8 slots: 8 adapters, 64 that all fit in host memory,
and 64 of which a third fits, so that the others are read from disk again and again. The peak of
the host memory for adapters is sampled every 10 ms and stands beside its budget.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from contextlib import suppress

from benchmarks.traffic import Arrival, milliseconds, play, poisson, serving
from remix_runtime.contracts import Engine
from remix_runtime.demo_model import demo_model
from remix_runtime.engines.embedded import EmbeddedConfig

SLOTS = 8
PROMPT_TOKENS, NEW_TOKENS = 32, 16


async def _peak(engine: Engine, found: list[int]) -> None:
    with suppress(asyncio.CancelledError):
        while True:
            found[0] = max(found[0], engine.stats().host_adapter_bytes_used)
            await asyncio.sleep(0.01)


async def measure(
    base: str, num_adapters: int, rate: float, seconds: float, host_bytes: int
) -> tuple[str, int]:
    """A row of the table, and the bytes of all adapters on the host where they all fit."""
    config = EmbeddedConfig(model=base, adapter_slots=SLOTS, host_adapter_bytes=host_bytes)
    async with serving(config, num_adapters) as (engine, digests):
        loaded = engine.stats()
        rng, found = random.Random(0), [0]
        arrivals = [
            Arrival(at, "", rng.choice(digests), PROMPT_TOKENS, NEW_TOKENS)
            for at in poisson(rate, seconds, seed=1)
        ]
        watch = asyncio.create_task(_peak(engine, found))
        served = await play(engine, arrivals)
        watch.cancel()
        await watch
        stats = engine.stats()
    row = (
        f"| {num_adapters} over {SLOTS} | {host_bytes / 2**20:.0f} | {len(served)} "
        f"| {milliseconds(served, 0.5):.0f} | {milliseconds(served, 0.99):.0f} "
        f"| {stats.adapter_slot_fills - loaded.adapter_slot_fills} "
        f"| {stats.adapter_reads - loaded.adapter_reads} | {found[0] / 2**20:.1f} |"
    )
    assert found[0] <= host_bytes, "the budget was exceeded"
    return row, loaded.host_adapter_bytes_used


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", help="a model folder; the demo model by default")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    base = args.base or str(demo_model())
    print("| adapters | host budget MiB | requests | TTFT p50 ms | p99 ms | fills | reads | peak |")
    print("|---|---|---|---|---|---|---|---|")

    def run(num_adapters: int, host_bytes: int) -> int:
        row, used = asyncio.run(measure(base, num_adapters, args.rate, args.seconds, host_bytes))
        print(row, flush=True)
        return used

    run(8, 4 << 30)
    used = run(64, 4 << 30)
    run(64, used // 3)


if __name__ == "__main__":
    main()
