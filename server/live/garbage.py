"""Removes folders from the store that nobody registered: of imports that crashed, of adapters that
were deleted."""

from __future__ import annotations

import asyncio
import logging

from remix_runtime.background import BackgroundTasks
from remix_runtime.watch import Watch, Watched
from server.live.adapters import LiveAdapters
from server.store import AdapterStore
from server.tenancy.directory import Directory

log = logging.getLogger(__name__)

GARBAGE_TASK = "garbage"
"""Name of the watched task."""

MIN_AGE_SECONDS = 3600.0
"""Longer than an import takes from its folder to its registration."""
INTERVAL_SECONDS = 3600.0
COLLECT_SECONDS = 600.0
"""Seconds that a collection may take."""
_LAST_PAUSE_SECONDS = 600.0


async def collect_garbage(
    directory: Directory, store: AdapterStore, adapters: LiveAdapters, *, min_age_seconds: float
) -> list[str]:
    """Removes what is neither registered nor pinned here, and returns those digests. Raises
    `DatabaseUnavailableError`: without it no folder is known to be an orphan."""
    registered = await directory.digests()
    keep = registered | adapters.digests
    return await store.collect_garbage(keep, min_age_seconds=min_age_seconds)


class GarbageCollector:
    """Collects garbage every hour, as a watched task."""

    def __init__(self, directory: Directory, store: AdapterStore, adapters: LiveAdapters) -> None:
        self._directory = directory
        self._store = store
        self._adapters = adapters
        self._tasks = BackgroundTasks(log, "collecting garbage")
        self._watched: Watched | None = None
        self._collecting: asyncio.Task[list[str]] | None = None

    def start(self, watch: Watch) -> None:
        self._watched = watch.start(
            GARBAGE_TASK,
            self._collect_for_ever,
            what="collecting garbage",
            due_seconds=COLLECT_SECONDS,
            last_pause_seconds=_LAST_PAUSE_SECONDS,
        )

    async def stop(self) -> None:
        """What the store's thread has begun it does to the end, whoever waits for it."""
        if self._watched is not None:
            await self._watched.stop()
        if self._collecting is not None:
            self._collecting.cancel()
        await self._tasks.settle()

    async def _collect_for_ever(self, task: Watched) -> None:
        while True:
            # One that hangs is waited for again: each new one would hold a thread of the store.
            if self._collecting is None or self._collecting.done():
                self._collecting = self._tasks.start(
                    collect_garbage(
                        self._directory,
                        self._store,
                        self._adapters,
                        min_age_seconds=MIN_AGE_SECONDS,
                    )
                )
            removed = await self._tasks.result(self._collecting)
            if removed:
                log.info(
                    "collected %d adapters that are neither registered nor pinned", len(removed)
                )
            await task.rest(INTERVAL_SECONDS)
