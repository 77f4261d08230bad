"""Watches tasks that live as long as the server: one that fails, hangs or ends before its time is
told once, tried again with a growing pause, and seen by whoever asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from remix_runtime.errors import RemixError

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LAST_PAUSE_SECONDS = 60.0
"""Seconds before the first try again, and the most before a later one; each pause is twice the one
before."""
TELL_SECONDS = 30.0
"""Seconds of failing after which a task is in `Watch.failing`; what ends sooner is no news."""
CALM_SECONDS = 60.0
"""Seconds of work after which the next failure counts as a new one."""
_STOP_SECONDS = 5.0
"""Seconds that a task has to end once it is stopped."""
_LATE_SECONDS = 1.0


class TaskError(RemixError):
    """A watched task did not fail, but does not work either: it hangs, or has ended."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """The time, as a watch sees it."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer: ...


class LoopClock:
    """The clock of the event loop that runs."""

    def time(self) -> float:
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)


class Watched:
    """A task from its start until it is stopped. Its work has this object, to give signs of life
    with."""

    def __init__(
        self,
        name: str,
        what: str,
        work: Callable[[Watched], Coroutine[Any, Any, None]],
        clock: Clock,
        *,
        due_seconds: float,
        last_pause_seconds: float,
        ends: bool,
        ended: Callable[[Watched], None],
    ) -> None:
        self.name = name
        self._what = what
        self._work = work
        self._clock = clock
        self._due_seconds = due_seconds
        self._last_pause_seconds = last_pause_seconds
        self._ends = ends
        self._on_end = ended
        self._stopped = False
        self._task: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        """While the task runs, until its next sign of life is due; between two tries, the pause."""
        self._sign = self._deadline = self._well_since = clock.time()
        self._silence: TaskError | None = None
        self._failing_since: float | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._logged: set[type[BaseException]] = set()
        self._begin()

    def beat(self, due_seconds: float | None = None) -> None:
        """Tells that the work succeeds, and will tell so again within `due_seconds`; by default,
        those that it was started with."""
        self._sign = self._clock.time()
        self._silence = None
        if self._failing_since is not None:
            log.info("%s works again after %.0f s", self._what, self._sign - self._failing_since)
            self._failing_since, self._well_since = None, self._sign
        self._expect(self._due_seconds if due_seconds is None else due_seconds)

    async def rest(self, seconds: float) -> None:
        """A sign of life before `seconds` of sleep."""
        self.beat(seconds + self._due_seconds)
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self._clock.call_later(seconds, wake)
        try:
            await woken
        finally:
            timer.cancel()

    @property
    def is_failing(self) -> bool:
        """Whether it has not worked for `TELL_SECONDS`; one that hangs, since its last sign."""
        since = self._failing_since
        return since is not None and self._clock.time() - since >= TELL_SECONDS

    def cancel(self) -> None:
        """Cancels the work and tries it no more."""
        self._stop()
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """Cancels the work and waits for its end, but not for long."""
        self.cancel()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_STOP_SECONDS)

    async def finish(self) -> None:
        """Waits for work that is about to end by itself, and tries it no more."""
        self._stop()
        if self._task is not None:
            await asyncio.wait([self._task])

    def _stop(self) -> None:
        self._stopped = True
        self._clear_timer()
        if self._task is None:
            self._on_end(self)

    def _begin(self) -> None:
        self._silence, self._sign = None, self._clock.time()
        self._task = asyncio.get_running_loop().create_task(self._work(self))
        self._task.add_done_callback(self._ended)
        self._expect(self._due_seconds)

    def _expect(self, seconds: float) -> None:
        self._clear_timer()
        if not self._stopped:
            self._deadline = self._clock.time() + seconds
            self._timer = self._clock.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        now = self._clock.time()
        if now - self._deadline > _LATE_SECONDS:
            # The event loop stood still, or the whole process. The task could give no sign.
            self._expect(self._due_seconds)
            return
        self._silence = TaskError(f"no sign of life for {now - self._sign:.0f} s")
        self._fail(self._silence, since=self._sign)
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._clear_timer()
        error = self._error_of(task)
        if error is None or self._stopped:
            self._stopped = True
            self._on_end(self)
            return
        self._fail(error, since=self._clock.time())
        self._timer = self._clock.call_later(self._pause_seconds, self._begin)
        self._pause_seconds = min(2 * self._pause_seconds, self._last_pause_seconds)

    def _error_of(self, task: asyncio.Task[None]) -> BaseException | None:
        if task.cancelled():
            return self._silence or TaskError("it was cancelled")
        error = task.exception()
        if error is None and not self._ends:
            return TaskError("it ended")
        return error

    def _fail(self, error: BaseException, *, since: float) -> None:
        if self._failing_since is None:
            self._failing_since = since
            if self._clock.time() - self._well_since > CALM_SECONDS:
                self._pause_seconds = FIRST_PAUSE_SECONDS
                self._logged.clear()
        if type(error) in self._logged:
            return
        self._logged.add(type(error))
        log.error(
            "%s fails and is tried again; such a failure is logged once: %s",
            self._what,
            error,
            exc_info=None if isinstance(error, RemixError) else error,
        )

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Watch:
    """The long-lived tasks of one event loop."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or LoopClock()
        self._tasks: set[Watched] = set()

    def start(
        self,
        name: str,
        work: Callable[[Watched], Coroutine[Any, Any, None]],
        *,
        what: str,
        due_seconds: float,
        last_pause_seconds: float | None = None,
        ends: bool = False,
    ) -> Watched:
        """Does `work` until it is stopped, again whenever it raises, is cancelled, or gives no sign
        of life (`Watched.beat`) within `due_seconds`. It may return only if it `ends`.

        `name` is for everybody to see, and several tasks may have the same; `what` is for the log,
        the beginning of a sentence.
        """
        task = Watched(
            name,
            what,
            work,
            self._clock,
            due_seconds=due_seconds,
            last_pause_seconds=last_pause_seconds or LAST_PAUSE_SECONDS,
            ends=ends,
            ended=self._tasks.discard,
        )
        self._tasks.add(task)
        return task

    def time(self) -> float:
        return self._clock.time()

    @property
    def failing(self) -> tuple[str, ...]:
        """The names of the tasks that do not work, in the order of the alphabet."""
        return tuple(sorted({task.name for task in list(self._tasks) if task.is_failing}))

    async def stop(self) -> None:
        """Stops all of them."""
        await asyncio.gather(*(task.stop() for task in list(self._tasks)))
