"""The process of one measured system: builds it, then answers workloads over a pipe.

While it waits the process sleeps in a read; it also reports the CPU time it used between two
workloads, which shows whether idle threads spin.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.speed.systems.protocol import Answer, Failure, System


def main() -> None:
    """The first message is ("module:Class", options); then come workloads until the pipe closes."""
    pipe = Connection(int(sys.argv[1]))
    target, options = pipe.recv()
    module, _, name = target.partition(":")
    system: System | Failure = _attempt(
        lambda: getattr(importlib.import_module(module), name)(**options)
    )
    if isinstance(system, Failure):
        pipe.send(system)
        return
    pipe.send(system.about)
    while True:
        cpu, wall = time.process_time(), time.monotonic()
        try:
            workload = pipe.recv()
        except EOFError:
            return
        idle_cpu, idle_wall = time.process_time() - cpu, time.monotonic() - wall
        run = _attempt(partial(system.run, workload))
        pipe.send(run if isinstance(run, Failure) else Answer(run, idle_cpu, idle_wall))


def _attempt(call: Callable[[], Any]) -> Any:
    """What the call returns, or a `Failure`."""
    try:
        return call()
    except Exception as error:
        traceback.print_exc()
        return Failure(f"{type(error).__name__}: {error}".splitlines()[0][:300])
