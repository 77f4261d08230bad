"""One thread that works for many tenants, in turns."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from remix_runtime.errors import EngineBusyError
from remix_runtime.fairness.queue import FairQueue
from remix_runtime.fairness.shares import Shares

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Job(Generic[T]):
    function: Callable[[], T]
    future: Future[T] = field(default_factory=Future)


class FairWorker:
    """Its next job is the oldest one of the waiting tenant that had the least of its thread's time.
    Jobs that wait or run are `places`, in shares. `what` names them in a refusal.

    A thread and not a pool: what it works with must not be used by two threads at once.
    """

    def __init__(self, name: str, *, places: int, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        """Held for a few steps of the queue, never for a job."""
        self._shares = Shares(places)
        self._waiting: FairQueue[_Job[Any]] = FairQueue()
        self._is_working = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._is_working

    async def run(self, tenant: str, function: Callable[[], T]) -> T:
        """The result of `function`. A caller that leaves before its turn takes its job along.
        Raises `EngineBusyError`."""
        future = self.submit(tenant, function)
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.cancel():  # it has not begun
                self._sweep(tenant)

    def submit(self, tenant: str, function: Callable[[], T]) -> Future[T]:
        """Raises `EngineBusyError` for a tenant that has its share of what waits."""
        job = _Job(function)
        with self._lock:
            if not self._shares.take(tenant):
                held = self._shares.held(tenant)
                raise EngineBusyError(f"the queue is full ({held} of your {self._what})")
            self._waiting.add(tenant, job)
            is_working, self._is_working = self._is_working, True
        if not is_working:
            self._thread.submit(self._work)
        return job.future

    def close(self) -> None:
        """Cancels what waits and lets the thread go. What it works on comes to its end unheard."""
        with self._lock:
            waiting = [job for _, job in self._waiting]
        for job in waiting:
            job.future.cancel()
        self._thread.shutdown(wait=False)

    def _sweep(self, tenant: str) -> None:
        """Takes out the cancelled jobs of a tenant."""
        with self._lock:
            for owner, job in list(self._waiting):
                if owner == tenant and job.future.cancelled():
                    self._waiting.remove(tenant, job)
                    self._shares.give_back(tenant)

    def _work(self) -> None:
        """Works until nothing waits. In the thread."""
        while (found := self._next()) is not None:
            tenant, job = found
            result, error = None, None
            began = time.thread_time_ns()
            if job.future.set_running_or_notify_cancel():
                try:
                    result = job.function()
                except BaseException as caught:
                    error = caught
            # Microseconds; each job costs something, or the shortest would be free.
            took = 1 + (time.thread_time_ns() - began) // 1000
            with self._lock:
                self._waiting.charge(tenant, took)
                self._shares.give_back(tenant)
            if error is not None:
                job.future.set_exception(error)
            elif not job.future.cancelled():
                job.future.set_result(result)

    def _next(self) -> tuple[str, _Job[Any]] | None:
        with self._lock:
            found = next(iter(self._waiting), None)
            if found is None:
                self._is_working = False
            else:
                self._waiting.remove(*found)
            return found
