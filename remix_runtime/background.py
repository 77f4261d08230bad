"""Runs work on the event loop that goes on when its caller goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundTasks:
    """Keeps tasks until they end. A failure is raised where `result` waits for it; if nobody does,
    or not any more, it is logged. `what` names the work in the log."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._waiting: dict[asyncio.Task[Any], int] = {}
        """How many wait for the result of each task that runs."""

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._waiting[task] = 0
        task.add_done_callback(self._done)
        return task

    async def result(self, task: asyncio.Task[T]) -> T:
        """Waits for a task, which goes on if the caller is cancelled."""
        if task in self._waiting:
            self._waiting[task] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if task in self._waiting:
                self._waiting[task] -= 1

    async def settle(self) -> None:
        """Waits until all have ended, also those that others of them started."""
        while self._waiting:
            await asyncio.wait(self._waiting)

    def _done(self, task: asyncio.Task[Any]) -> None:
        is_awaited = self._waiting.pop(task) > 0
        error = None if task.cancelled() else task.exception()
        if error is not None and not is_awaited:
            self._log.info("%s failed: %s", self._what, error)
