"""Lets a few at a time work with the same thing, so that a slow one does not hold up the others."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Turns:
    """Places for each key, first come first served. The fewer of all places are free, the fewer may
    one key hold: a few that hang leave room for all others. Belongs to one event loop."""

    def __init__(self, at_once: int, places: int) -> None:
        self._at_once = at_once
        self._places = places
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """Waits for a place of this key and holds it."""
        if key in self._waiting or not self._has_place(key):
            await self._wait(key)
        else:
            self._held[key] += 1
        try:
            yield
        finally:
            self._give_back(key)

    def _has_place(self, key: str) -> bool:
        free = self._places - self._held.total()
        return free > 0 and self._held[key] < max(1, min(self._at_once, free // self._at_once))

    async def _wait(self, key: str) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it came in the same moment
                self._give_back(key)
            else:
                self._leave(key, place)
            raise

    def _give_back(self, key: str) -> None:
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        for other in [*self._waiting]:
            while (queue := self._waiting.get(other)) and self._has_place(other):
                place = queue[0]
                self._leave(other, place)
                if not place.cancelled():  # its waiter has not heard of that yet
                    self._held[other] += 1
                    place.set_result(None)

    def _leave(self, key: str, place: asyncio.Future[None]) -> None:
        queue = self._waiting.get(key, deque())
        with suppress(ValueError):  # it was taken out already
            queue.remove(place)
        if not queue:
            self._waiting.pop(key, None)
