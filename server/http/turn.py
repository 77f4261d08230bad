"""A turn of the event loop: who has much to do lets others go on in between."""

from __future__ import annotations

import asyncio
from time import monotonic

_LONG_SECONDS = 0.005


class Turn:
    """Begins when it is made."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begins again: others have just had theirs."""
        self._began = monotonic()

    async def end_if_long(self) -> None:
        """Lets others have a turn, and begins a new one, if this one has been long."""
        if monotonic() - self._began > _LONG_SECONDS:
            await asyncio.sleep(0)
            self.begin()
