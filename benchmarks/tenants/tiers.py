"""Far more adapters than slots against as many: time to first token, slot fills, memory.

    python -m benchmarks.tenants.tiers [--base FOLDER] [--rate 2] [--seconds 60]

Three runs under the same random traffic over 8 slots: 8 adapters, 64 that all fit in host memory,
and 64 of which a third fits, so that the others are read from disk again and again. The peak of
the host memory for adapters is sampled every 10 ms and stands beside its budget.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import typer

from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.tenants.traffic import Arrival, milliseconds, play, poisson, serving
from remix_runtime.contracts import Engine
from remix_runtime.engines.embedded import EmbeddedConfig

SLOTS = 8
HEADER = (
    *("adapters", "host budget MiB", "requests", "TTFT p50 ms", "p99 ms"),
    *("fills", "reads", "peak MiB"),
)


async def _peak(engine: Engine, found: list[int]) -> None:
    with suppress(asyncio.CancelledError):
        while True:
            found[0] = max(found[0], engine.stats().host_adapter_bytes_used)
            await asyncio.sleep(0.01)


async def measure(
    config: EmbeddedConfig, num_adapters: int, rate: float, seconds: float
) -> tuple[list[object], int]:
    """A row of the table, and the bytes of all adapters on the host where they all fit."""
    async with serving(config, num_adapters) as (engine, digests):
        loaded = engine.stats()
        rng, found = random.Random(0), [0]
        times = poisson(rate, seconds, seed=1)
        watch = asyncio.create_task(_peak(engine, found))
        served = await play(engine, [Arrival(at, "", rng.choice(digests)) for at in times])
        watch.cancel()
        await watch
        stats = engine.stats()
    assert found[0] <= config.host_adapter_bytes, "the budget was exceeded"
    row: list[object] = [f"{num_adapters} over {SLOTS}", config.host_adapter_bytes >> 20]
    row += milliseconds([item.first_token for item in served])
    row += [stats.adapter_slot_fills - loaded.adapter_slot_fills]
    row += [stats.adapter_reads - loaded.adapter_reads, f"{found[0] / 2**20:.1f}"]
    return row, loaded.host_adapter_bytes_used


def main(
    base: Base, rate: float = 2.0, seconds: float = 60.0, many: int = 64, out: Out = None
) -> None:
    """Load an engine with `rate` requests per second, for 8 adapters and for `many`."""

    def run(num_adapters: int, host_bytes: int) -> tuple[list[object], int]:
        config = EmbeddedConfig(model=str(base), adapter_slots=SLOTS, host_adapter_bytes=host_bytes)
        return asyncio.run(measure(config, num_adapters, rate, seconds))

    few, _ = run(SLOTS, 4 << 30)
    all_fit, used = run(many, 4 << 30)
    third_fits, _ = run(many, used // 3)
    publish(out, "Tiers of adapters", Table(HEADER, [few, all_fit, third_fits]))


if __name__ == "__main__":
    typer.run(main)
