"""The adapters that a server has loaded: their folders are here, replicas get their bytes."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from remix_runtime.contracts import AdapterInfo
from remix_runtime.engine_state import AdapterState, AdapterTier
from remix_runtime.engines.ray.cluster import Cluster
from remix_runtime.engines.ray.fleet import Fleet
from remix_runtime.engines.served import ServedAdapter, ServedAdapters
from remix_runtime.errors import AdapterUnavailableError, CheckpointError

log = logging.getLogger(__name__)

LOADS_AT_ONCE = 2
"""Adapters whose bytes are on their way to a load."""

_NEAREST = (AdapterTier.DEVICE, AdapterTier.HOST, AdapterTier.DISK)


class RayAdapters(ServedAdapters[ServedAdapter]):
    """Adapters by digest. One is on the disk of this server until a replica needs it, so its folder
    must stay as long as it is loaded."""

    def __init__(self, cluster: Cluster, fleet: Fleet) -> None:
        super().__init__(log)
        self._cluster = cluster
        self._fleet = fleet
        self._loading = asyncio.Semaphore(LOADS_AT_ONCE)
        self._deliveries: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        """By digest, replica and its round."""

    async def deliver(self, digest: str, replica: str, number: int) -> None:
        """Sends the adapter's bytes to a replica that lacks it. Raises
        `AdapterUnavailableError`."""
        key = digest, replica, number
        if key not in self._deliveries:
            task = self._deliveries[key] = self._tasks.start(self._deliver(digest, replica))
            task.add_done_callback(lambda _: self._deliveries.pop(key))
        try:
            await self._tasks.result(self._deliveries[key])
        except CheckpointError as error:
            raise AdapterUnavailableError(f"adapter {digest}: {error}", digest=digest) from error

    async def states(self) -> list[AdapterState]:
        """Each at the nearest place that it has in any replica."""
        found: dict[str, AdapterState] = {}
        for state in await self._cluster.states():
            best = found.get(state.digest)
            if best is None or _NEAREST.index(state.tier) < _NEAREST.index(best.tier):
                found[state.digest] = state
        states = []
        for digest, served in self._served.items():
            if served.is_open:
                place = found.get(digest)
                tier = AdapterTier.DISK if place is None else place.tier
                states.append(served.state(tier, None if place is None else place.slot))
        return states

    async def _deliver(self, digest: str, replica: str) -> None:
        served, started = self._served[digest], time.monotonic()
        bundle = await self._cluster.pack(served.folder)
        await self._cluster.deliver(replica, digest, bundle)
        self._count_read(served, started)

    async def _load(self, folder: Path, digest: str | None) -> AdapterInfo:
        started = time.monotonic()
        async with self._loading:
            bundle = await self._cluster.pack(folder)
            loaded = await self._cluster.load(bundle, digest, str(folder))
        self._fleet.take(loaded.report)
        info = loaded.info
        if self._open_again(info.digest, folder) is None:
            self._served[info.digest] = served = ServedAdapter(folder, info, is_open=True)
            self._count_read(served, started)
        return info

    async def _unload(self, digest: str, served: ServedAdapter) -> None:
        async with self._unpinned:
            await self._unpinned.wait_for(lambda: not served.pins)
        if not served.is_open:  # or it was loaded again meanwhile, and stays
            del self._served[digest]
            self._fleet.forget(digest)
            for report in await self._cluster.drop(digest):
                self._fleet.take(report)
