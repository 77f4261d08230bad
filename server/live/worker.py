"""Work that is too long for a turn of the event loop, in one thread: tenants take turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from remix_runtime.errors import EngineBusyError

T = TypeVar("T")

MAX_WAITING = 256
"""The most pieces of work that may wait; one more is refused at once."""


class Worker:
    """A piece of work at a time, so that however many come they share one thread's time with the
    event loop. It must be Python that makes no long call of C: such a call holds up all threads.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="remix-worker")
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By tenant; whose turn is next comes first."""
        self._taken = False

    async def run(self, tenant: str, function: Callable[[], T]) -> T:
        """Runs `function` in the thread when it is the tenant's turn. Raises `EngineBusyError` when
        too many wait."""
        async with self._turn(tenant):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, function)

    @asynccontextmanager
    async def _turn(self, tenant: str) -> AsyncIterator[None]:
        if self._taken:
            if sum(map(len, self._waiting.values())) >= MAX_WAITING:
                raise EngineBusyError(f"the queue is full ({MAX_WAITING} texts wait to be read)")
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(tenant, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # the turn had come at that very moment
                    self._pass_on()
                raise
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            tenant, turns = next(iter(self._waiting.items()))
            del self._waiting[tenant]
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns  # behind the others
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._taken = False
