"""Removes folders from the store that nobody registered: of imports that crashed, of adapters that
were deleted."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from remix_runtime.errors import RemixError
from server.live.adapters import LiveAdapters
from server.store import AdapterStore
from server.tenancy.directory import Directory

log = logging.getLogger(__name__)

MIN_AGE_SECONDS = 3600.0
"""Longer than an import takes from its folder to its registration."""
_INTERVAL_SECONDS = 3600.0


async def collect_garbage(
    directory: Directory, store: AdapterStore, adapters: LiveAdapters, *, min_age_seconds: float
) -> list[str]:
    """Removes what is neither registered nor pinned here, and returns those digests. Raises
    `DatabaseUnavailableError`: without it no folder is known to be an orphan."""
    registered = {record.digest for record in await directory.adapters()}
    keep = registered | adapters.digests
    return await store.collect_garbage(keep, min_age_seconds=min_age_seconds)


async def collect_garbage_until(
    stop: asyncio.Event, directory: Directory, store: AdapterStore, adapters: LiveAdapters
) -> None:
    """Collects garbage every hour, until `stop` is set. A collection that has begun ends."""
    while not stop.is_set():
        try:
            removed = await collect_garbage(
                directory, store, adapters, min_age_seconds=MIN_AGE_SECONDS
            )
            if removed:
                log.info(
                    "collected %d adapters that are neither registered nor pinned", len(removed)
                )
        except (RemixError, OSError) as error:
            log.warning("garbage was not collected: %s", error)
        except Exception:
            log.exception("garbage was not collected")  # no reason to stop serving
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _INTERVAL_SECONDS)
