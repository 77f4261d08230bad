"""A clock that only goes when a test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True)
class FakeTimer:
    due: float
    number: int
    callback: Callable[[], object] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """As `watch.Clock`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[FakeTimer] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object], /) -> FakeTimer:
        timer = FakeTimer(self.now + delay, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    async def advance(self, seconds: float) -> None:
        """Lets the time pass; what becomes due happens in its moment, with all that follows at
        once."""
        end = self.now + seconds
        await settle()
        while self._timers and self._timers[0].due <= end:
            timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self.now = max(self.now, timer.due)
                timer.callback()
                await settle()
        self.now = end

    def jump(self, seconds: float) -> None:
        """The time passes while nothing can happen: the process was stopped."""
        self.now += seconds


async def settle() -> None:
    """Lets the tasks do what they can do now; not what threads or sockets do."""
    for _ in range(20):
        await asyncio.sleep(0)
