"""How threads wait at OpenMP's barriers: they spin while the cores are theirs, and sleep while
others want them.

A product is split over threads that meet at a barrier. libgomp's threads spin there for
milliseconds, which is best where every thread has a core of its own: to sleep and be woken costs a
third of a small batch's speed. Beside other work, or under a container's CPU quota, the thread that
is waited for may not be running, and the others burn the time that it needs: one busy neighbour
made a token take 10 times as long.

libgomp spins for a hundred turns only while it has more threads than there are cores (its wait.h:
`gomp_managed_threads`, `gomp_throttled_spin_count_var`). So a watch reads from the kernel how long
our threads waited for a core, and where that is long, holds a pool of sleeping threads beside
theirs.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from remix_runtime.threads import cores_of_process

log = logging.getLogger(__name__)

PERIOD_SECONDS = 0.1
_LAST_PAUSE_SECONDS = 60.0
"""Seconds between two looks while they fail, at most."""

_LEAST_WANTED = 0.2
"""Part of a period for which a thread has to want a core to tell anything."""

_MOST_WAITED = 0.2
"""Part of the time in which a thread wanted a core and had none. Beside one busy process it is a
third and more, on a quiet machine a few hundredths."""

_CROWDED_PERIODS = 2
"""Periods of waiting in a row from which the cores are taken to be shared."""

_CALM_PERIODS = 5
"""Periods without it until they are taken to be ours again."""

BRIEF_SPIN_COUNT = "1000"
"""Turns of a barrier's loop before a thread sleeps: some microseconds."""

Seconds = tuple[float, float]
"""How long a thread computed, and how long it waited for a core."""


def watch_barriers(environment: MutableMapping[str, str] = os.environ) -> BarrierWatch | None:
    """Watches until the process ends, unless the user has said how threads wait. Where the kernel
    does not tell, they spin briefly if this comes before `import torch`; then None."""
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        return None
    if not thread_times():
        environment["GOMP_SPINCOUNT"] = BRIEF_SPIN_COUNT
        return None
    watch = BarrierWatch()
    watch.start()
    return watch


class BarrierWatch(threading.Thread):
    """Holds a crowd while others want the cores."""

    def __init__(self, read: Callable[[], Mapping[int, Seconds]] | None = None) -> None:
        super().__init__(name="remix-barriers", daemon=True)
        self._read = read or thread_times
        self._last = self._read()
        self._periods = 0
        self._crowd: Crowd | None = None
        self._stopping = threading.Event()

    @property
    def crowded(self) -> bool:
        return self._crowd is not None

    def run(self) -> None:
        pause, logged = PERIOD_SECONDS, False
        while not self._stopping.wait(pause):
            try:
                self.look()
            except Exception:  # the threads wait as they do now, and no request is wrong by it
                if not logged:
                    log.exception("how threads wait is not watched; tried again, logged once")
                pause, logged = min(2 * pause, _LAST_PAUSE_SECONDS), True
            else:
                pause = PERIOD_SECONDS
        self._leave()

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def look(self) -> None:
        """What the threads did since the last look decides how they wait until the next one."""
        times = self._read()
        waited = [
            (wait - last_wait) / wanted
            for thread, (computed, wait) in times.items()
            for last_computed, last_wait in [self._last.get(thread, (0.0, 0.0))]
            for wanted in [computed - last_computed + wait - last_wait]
            if wanted > _LEAST_WANTED * PERIOD_SECONDS
        ]
        self._last = times
        if not waited:
            return
        # The others wait at the barrier for the one that waits longest.
        waits = max(waited) > _MOST_WAITED
        self._periods = self._periods + 1 if waits is not self.crowded else 0
        if self._crowd is None and self._periods == _CROWDED_PERIODS:
            self._crowd, self._periods = Crowd.gather(), 0
        elif self._crowd is not None and self._periods == _CALM_PERIODS:
            self._leave()

    def _leave(self) -> None:
        if self._crowd is not None:
            self._crowd.leave()
            self._crowd, self._periods = None, 0


class Crowd:
    """A pool of OpenMP's threads that sleep, one for every core."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._leaving = threading.Event()
        self._gathered = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remix-crowd", daemon=True)
        self._thread.start()
        self._gathered.wait()

    @classmethod
    def gather(cls) -> Crowd | None:
        """None as long as libgomp is not loaded: nobody waits at its barriers."""
        # PyTorch bundles it, under a name that differs between its wheels.
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.partition("/")[1] + line.partition("/")[2]
            if Path(path).name.startswith("libgomp"):
                return cls(ctypes.CDLL(path))
        return None

    def leave(self) -> None:
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        # A pool belongs to the thread that had something done in parallel, and ends with it. What
        # is done is nothing: any function of the library that reads one value.
        nothing = self._library.omp_get_thread_num
        self._library.GOMP_parallel(nothing, None, cores_of_process(), 0)
        self._gathered.set()
        self._leaving.wait()


def thread_times(tasks: Path = Path("/proc/self/task")) -> dict[int, Seconds]:
    """Of each thread of this process. Empty where the kernel does not say."""
    times = {}
    for path in tasks.glob("*/schedstat"):
        try:
            computed, waited, _ = path.read_text().split()
        except (OSError, ValueError):  # the thread has ended
            continue
        times[int(path.parent.name)] = int(computed) / 1e9, int(waited) / 1e9
    return times
