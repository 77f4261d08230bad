"""The adapters that an engine has loaded: which requests pin them, and what is told of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from remix_runtime.adapter.checkpoint import Checkpoint
from remix_runtime.background import BackgroundTasks
from remix_runtime.contracts import AdapterInfo, AdapterState, AdapterTier


@dataclass(slots=True)
class ServedAdapter:
    folder: Path
    info: AdapterInfo
    read_seconds: float = 0.0
    pins: int = 0
    """By open requests: an adapter that is pinned stays."""
    last_used: float | None = None
    is_open: bool = False
    """Takes new requests: not before its load is complete, nor while it is unloaded."""
    unload: asyncio.Task[None] | None = None

    def state(self, tier: AdapterTier, slot: int | None) -> AdapterState:
        idle = None
        if self.pins:
            idle = 0.0
        elif self.last_used is not None:
            idle = time.monotonic() - self.last_used
        return AdapterState(
            digest=self.info.digest,
            tier=tier,
            slot=slot,
            requests=self.pins,
            idle_seconds=idle,
            read_seconds=self.read_seconds,
        )


S = TypeVar("S", bound=ServedAdapter)


class ServedAdapters(Generic[S]):
    """By digest. Used on one event loop. How they are loaded, read again and unloaded is the
    engine's: it derives from this."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self.num_reads = 0
        self.total_read_seconds = 0.0
        """Of the reads that brought a copy, those of loads included."""
        self._served: dict[str, S] = {}
        # Every change is a task of its own: half of one is none when its caller goes away.
        self._tasks = BackgroundTasks(log, "loading, reading or unloading an adapter")
        self._unpinned = asyncio.Condition()

    def __contains__(self, digest: str) -> bool:
        served = self._served.get(digest)
        return served is not None and served.is_open

    def __len__(self) -> int:
        return len(self._served)

    def pin(self, digest: str) -> None:
        self._served[digest].pins += 1

    def unpin(self, digest: str) -> None:
        served = self._served[digest]
        served.pins -= 1
        served.last_used = time.monotonic()
        if not served.pins:
            self._tell_unpinned()

    async def settle(self, seconds: float) -> None:
        """Waits for what has begun to end, at most that long."""
        try:
            async with asyncio.timeout(seconds):
                await self._tasks.settle()
        except TimeoutError:
            self._log.warning("loads of adapters are still running")

    async def _close(self, served: S, unload: Callable[[], Coroutine[None, None, None]]) -> None:
        """Takes no new requests from now on; returns when `unload`, or the one before it, did."""
        if served.is_open:
            served.is_open = False
            if served.unload is None or served.unload.done():
                served.unload = self._tasks.start(unload())
        if served.unload is not None:
            await asyncio.shield(served.unload)

    def _count_read(self, served: S, started: float) -> None:
        served.read_seconds = time.monotonic() - started
        self.num_reads += 1
        self.total_read_seconds += served.read_seconds

    def _tell_unpinned(self) -> None:
        """Whoever waits on `_unpinned` looks again."""
        self._tasks.start(self._notify_unpinned())

    async def _notify_unpinned(self) -> None:
        async with self._unpinned:
            self._unpinned.notify_all()


def adapter_info(checkpoint: Checkpoint) -> AdapterInfo:
    return AdapterInfo(
        digest=checkpoint.digest,
        num_layers=len(checkpoint.layers),
        num_experts=checkpoint.config.num_experts,
        top_k=checkpoint.config.top_k,
        r=checkpoint.config.r,
        num_bytes=checkpoint.num_bytes,
    )
