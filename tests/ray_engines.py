"""Ray as the tests run it: one instance on this machine, its files in a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from remix_runtime.engines.config import FrontConfig
from remix_runtime.engines.ray.cluster import start_here
from remix_runtime.engines.ray.config import RayConfig
from remix_runtime.engines.ray.engine import RayEngine


@contextmanager
def running_ray(num_cpus: int) -> Iterator[None]:
    """Ray in this process. Engines that are made meanwhile use it and leave it as it is."""
    # Sockets lie there, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="remix-ray-", dir="/tmp")
    try:
        start_here(num_cpus, _temp_dir=folder)
        yield
    finally:
        import ray

        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


async def ray_engine(inner: FrontConfig, **settings: object) -> RayEngine:
    """An engine on the replicas that an earlier one has left, if their settings are the same. They
    have no adapters."""
    engine = RayEngine(RayConfig(**settings), inner)  # type: ignore[arg-type]
    assert not engine.health().ready
    await engine.start()
    for report in await engine._cluster.reports():
        for digest in report.adapters:
            await engine._cluster.drop(digest)
    for report in await engine._cluster.reports():
        engine._fleet.take(report)
    return engine
