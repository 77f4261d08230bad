"""A server's work on imports and sets, done by processes that are killed. Imported by a fork
server, so that a round costs no start of Python and PyTorch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from prometheus_client import CollectorRegistry

from remix_runtime.engines.fake import FakeEngine
from remix_runtime.watch import Watch
from server.live.adapters import LiveAdapters
from server.live.folders import Folders
from server.live.follower import Follower
from server.live.garbage import collect_garbage
from server.live.metrics import LiveMetrics
from server.live.sets import LiveSets
from server.live.swap import Swaps
from server.store import AdapterStore
from server.tenancy import Directory
from server.tenancy.errors import ReferencedError
from server.tenancy.records import AdapterRecord

TENANT = "acme"
NAMES = ("x", "y")


@dataclass
class Node:
    """What a server with tenants has inside, without HTTP."""

    directory: Directory
    store: AdapterStore
    engine: FakeEngine
    adapters: LiveAdapters
    sets: LiveSets
    follower: Follower
    swaps: Swaps

    async def add(self, source: str) -> str:
        stored = await self.store.import_from(source)
        record = AdapterRecord(
            digest=stored.digest, source=stored.source, num_bytes=stored.num_bytes
        )
        await self.directory.add_adapter(record, actor="test")
        return stored.digest

    async def collect(self) -> list[str]:
        return await collect_garbage(self.directory, self.store, self.adapters, min_age_seconds=0)


@asynccontextmanager
async def node(
    url: str,
    root: Path,
    *,
    poll_seconds: float = 0.05,
    engine: FakeEngine | None = None,
    watch: Watch | None = None,
) -> AsyncIterator[Node]:
    metrics = LiveMetrics(CollectorRegistry())
    engine = engine or FakeEngine()
    await engine.start()
    directory = await Directory.open(url)
    store = AdapterStore(root)
    adapters = LiveAdapters(engine, Folders(directory, store), metrics)
    sets = LiveSets("base", adapters)
    watch = watch or Watch()
    follower = Follower(directory, adapters, sets, metrics, watch, poll_seconds=poll_seconds)
    try:
        await follower.start()
        swaps = Swaps(directory, adapters, follower, metrics, base_name="base")
        yield Node(directory, store, engine, adapters, sets, follower, swaps)
    finally:
        await follower.stop()
        await adapters.settle()
        store.close()
        await directory.close()
        await engine.stop()


def work(url: str, root: str, sources: Sequence[str], seed: int, started: Connection) -> None:
    """Imports, swaps, rolls back, deletes and collects for ever. Both names of the set always have
    the same adapter. Tells that it has started before its first swap, or (even seeds) after it, and
    then each revision that it was told is written."""

    async def work_for_ever() -> None:
        choose = random.Random(seed)
        async with node(url, Path(root)) as server:
            told = False
            while True:
                if not told and seed % 2:
                    told = started.send(True) is None
                digest = await server.add(choose.choice(sources))
                put = await server.swaps.put(
                    TENANT, dict.fromkeys(NAMES, digest), expected=None, actor="child"
                )
                if not told:
                    told = started.send(True) is None
                started.send(put.after.revision)
                if choose.random() < 0.3:
                    await server.swaps.rollback(TENANT, 0, expected=None, actor="child")
                for record in await server.directory.adapters():
                    with suppress(ReferencedError):
                        if choose.random() < 0.5:
                            await server.directory.delete_adapter(record.digest, actor="child")
                await server.collect()

    asyncio.run(work_for_ever())
