"""Lets a few at a time work with the same thing, so that a slow one does not hold up the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Places for each key, first come first served. Belongs to one event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._places: dict[str, tuple[asyncio.Semaphore, int]] = {}
        """By key, with how many hold a place or wait for one."""

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """Waits for a place of this key and holds it."""
        places, users = self._places.get(key) or (asyncio.Semaphore(self._at_once), 0)
        self._places[key] = places, users + 1
        try:
            async with places:
                yield
        finally:
            places, users = self._places.pop(key)
            if users > 1:
                self._places[key] = places, users - 1
