"""Whether something grows with each time that it is done."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

Work = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds."""

    objects: int
    """That the garbage collector knows."""
    num_bytes: int
    files: int
    threads: int
    children: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        children = [
            Path(f"/proc/self/task/{task}/children").read_text().split()
            for task in os.listdir("/proc/self/task")
        ]
        return cls(
            objects=len(gc.get_objects()),
            num_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
            files=len(os.listdir("/proc/self/fd")),
            threads=threading.active_count(),
            children=sum(map(len, children)),
        )


async def leaks(work: Work, *, rounds: int, bytes_each: int) -> list[str]:
    """What grows while `work` is done `rounds` times more: by an object for every tenth time, by a
    quarter of `bytes_each`, or by a file, thread or child for every hundredth. What is made once,
    and what pools keep, is there after as many rounds before."""
    for _ in range(rounds):
        await work()
    before = Held.now()
    for _ in range(rounds):
        await work()
    after = Held.now()
    limits = {
        "objects": rounds // 10,
        "num_bytes": rounds * bytes_each // 4,
        "files": rounds // 100,
        "threads": rounds // 100,
        "children": rounds // 100,
    }
    return [
        name for name, most in limits.items() if getattr(after, name) - getattr(before, name) > most
    ]
