"""A turn of the event loop: who has much to do lets others go on in between."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

_LONG_SECONDS = 0.005


class Turn:
    """Begins when it is made."""

    def __init__(self) -> None:
        self._began = monotonic()

    async def end_if_long(self) -> None:
        """Lets others have a turn, and begins a new one, if this one has been long."""
        if monotonic() - self._began > _LONG_SECONDS:
            await asyncio.sleep(0)
            self._began = monotonic()

    async def take(self, queue: asyncio.Queue[T]) -> T:
        """The next item of a queue that nobody else reads. Where many are there already, because
        their reader was slow, it does not go through all of them in one turn."""
        if not queue.empty():
            await self.end_if_long()
            return queue.get_nowait()
        item = await queue.get()
        self._began = monotonic()
        return item
