"""Lets a few at a time do the same, in turns between tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from remix_runtime.fairness.queue import FairQueue


class FairTurns:
    """So many turns at once; each counts the same. Belongs to one event loop."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Waits for a turn of this tenant and holds it."""
        came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(tenant, came)
        self._give()
        try:
            await came
            yield
        finally:
            self._waiting.remove(tenant, came)
            if came.done() and not came.cancelled():
                self._free += 1
                self._give()

    def _give(self) -> None:
        while self._free and len(self._waiting):
            tenant, came = next(iter(self._waiting))
            self._waiting.remove(tenant, came)
            if not came.cancelled():  # else whoever waited is about to leave
                self._waiting.charge(tenant, 1)
                self._free -= 1
                came.set_result(None)
