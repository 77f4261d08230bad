"""Where imports run. What is imported again, because it is served, has a room of its own: new
imports, however many and slow, take nothing of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

from remix_runtime.adapter.checkpoint import Description
from remix_runtime.adapter.examination import ExaminationLimits, examine
from server.store.sources import is_of_the_web, place_of
from server.store.turns import Turns

T = TypeVar("T")

THREADS = 32
"""Of a room: for the web, and as many for all else, which slow hosts, however many, do not hold
up."""
AT_ONE_PLACE = 4
"""Imports from one web server, object store or disk at a time: others go on while it hangs."""


class Room:
    """Threads for imports, and turns at the places that they come from."""

    def __init__(self, name: str) -> None:
        self._threads = {
            of_the_web: ThreadPoolExecutor(THREADS, thread_name_prefix=f"remix-{name}")
            for of_the_web in (False, True)
        }
        self._turns = {key: Turns(AT_ONE_PLACE, THREADS) for key in self._threads}

    def turn(self, source: str) -> AbstractAsyncContextManager[None]:
        """Waits for a place where the source is, and holds it."""
        return self._turns[is_of_the_web(source)].turn(place_of(source))

    def start(self, source: str, work: Callable[[], T]) -> Future[T]:
        """Does `work`, whose turn it is, in a thread."""
        return self._threads[is_of_the_web(source)].submit(work)

    def close(self) -> None:
        for threads in self._threads.values():
            threads.shutdown(wait=False)


class Examiner:
    """Examines one adapter at a time: that may take as much memory as an adapter. Those that are
    served go first."""

    def __init__(self, limits: ExaminationLimits) -> None:
        self._limits = limits
        self._is_busy = False
        self._num_urgent = 0
        self._changed = threading.Condition()

    def examine(self, folder: Path, *, is_urgent: bool) -> Description:
        """Raises as `remix_runtime.adapter.examination.examine` does."""
        with self._changed:
            self._num_urgent += is_urgent
            self._changed.wait_for(
                lambda: not self._is_busy and (is_urgent or not self._num_urgent)
            )
            self._num_urgent -= is_urgent
            self._is_busy = True
        try:
            return examine(folder, self._limits)
        finally:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
