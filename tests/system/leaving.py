"""A server on a cluster whose worker leaves, as a program: `ADDRESS COMMAND…`, where the command
lets the worker leave. It fails where a request does, or where one is sent to it afterwards."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from remix_runtime.engines.fake_config import FakeConfig
from tests.engines import complete, request
from tests.ray_engines import ray_engine

CPUS = 2
"""Of a worker: it has room for one replica."""
TOKENS = 300
"""They take 15 seconds: longer than it takes all to hear of the leave."""
SECONDS = 90.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.02)


async def main(address: str, leave: Sequence[str]) -> None:
    engine = await ray_engine(
        FakeConfig(max_running=8, max_waiting=20, token_seconds=0.05),
        engine_of="fake",
        replicas=2,
        replica_cpus=CPUS,
        ray_address=address,
    )
    await until(lambda: engine.stats().replicas == 2)
    running = [request([5, 6, 7], max_tokens=TOKENS, ignore_eos=True) for _ in range(8)]
    streams = [asyncio.create_task(complete(engine, item)) for item in running]
    await until(lambda: len(engine._running) == 8 and all(job.has_told for job in engine._running))
    assert len({job.replica for job in engine._running}) == 2

    began = time.monotonic()
    await asyncio.to_thread(subprocess.run, leave, check=True)
    left = time.monotonic()
    await until(lambda: len(engine._placement.replicas) == 1)
    print(f"left in {left - began:.1f} s, known {time.monotonic() - left:.1f} s later", flush=True)
    assert not any(stream.done() for stream in streams)
    (stays,) = engine._placement.replicas
    new = [request([1], max_tokens=40, ignore_eos=True) for _ in range(4)]
    ids = {item.request_id for item in new}
    streams += [asyncio.create_task(complete(engine, item)) for item in new]
    await until(lambda: ids <= {job.request.request_id for job in engine._running if job.has_told})
    homes = {job.replica for job in engine._running if job.request.request_id in ids}
    assert homes == {stays}
    outcomes = await asyncio.wait_for(asyncio.gather(*streams), SECONDS)
    assert [len(outcome.token_ids) for outcome in outcomes] == [TOKENS] * 8 + [40] * 4
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
