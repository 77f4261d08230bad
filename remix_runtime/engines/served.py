"""The adapters that an engine has loaded: which requests pin them, and what is told of them."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from remix_runtime.adapter.checkpoint import Checkpoint
from remix_runtime.background import BackgroundTasks
from remix_runtime.contracts import AdapterInfo
from remix_runtime.engine_state import AdapterState, AdapterTier
from remix_runtime.errors import CheckpointMismatchError


@dataclass(slots=True)
class ServedAdapter:
    folder: Path
    info: AdapterInfo
    read_seconds: float = 0.0
    pins: int = 0
    """Open requests that use the adapter. It stays while it is pinned."""
    last_used: float | None = None
    is_open: bool = False
    """Whether new requests are taken: not before the load is complete, and not during an unload."""
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


class ServedAdapters(ABC, Generic[S]):
    """Loaded adapters by digest. Used on one event loop. An engine derives from this and says how
    adapters are loaded, read again and unloaded."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self.num_reads = 0
        self.total_read_seconds = 0.0
        """Seconds of all reads that brought a copy, those of loads included."""
        self._served: dict[str, S] = {}
        # Every change is a task of its own: half of one is none when its caller goes away.
        self._tasks = BackgroundTasks(log, "loading, reading or unloading an adapter")
        self._unpinned = asyncio.Condition()

    def __contains__(self, digest: str) -> bool:
        served = self._served.get(digest)
        return served is not None and served.is_open

    def __len__(self) -> int:
        return len(self._served)

    def info(self, digest: str) -> AdapterInfo | None:
        served = self._served.get(digest)
        return None if served is None else served.info

    @abstractmethod
    async def states(self) -> list[AdapterState]: ...

    @abstractmethod
    async def _load(self, folder: Path, digest: str | None) -> AdapterInfo:
        """`digest` is what the folder must hold, where that is known."""

    @abstractmethod
    async def _unload(self, digest: str, served: S) -> None:
        """Frees the adapter when nothing pins it, unless it was loaded again meanwhile."""

    async def load(self, folder: Path, digest: str | None = None) -> AdapterInfo:
        return await self._tasks.result(self._tasks.start(self._load(folder, digest)))

    async def unload(self, digest: str) -> None:
        """Refuses new requests from now on, and returns when nothing of the adapter is left."""
        served = self._served.get(digest)
        if served is None:
            return
        if served.is_open:
            served.is_open = False
            if served.unload is None or served.unload.done():
                served.unload = self._tasks.start(self._unload(digest, served))
        if served.unload is not None:
            await self._tasks.result(served.unload)

    def pin(self, digest: str) -> None:
        self._served[digest].pins += 1

    def unpin(self, digest: str) -> None:
        served = self._served[digest]
        served.pins -= 1
        served.last_used = time.monotonic()
        if not served.pins:
            self._tell_unpinned()

    async def settle(self, seconds: float) -> None:
        """Waits for the loads and unloads that have begun, at most so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._tasks.settle()
        except TimeoutError:
            self._log.warning("loads of adapters are still running")

    def _open_again(self, digest: str, folder: Path) -> AdapterInfo | None:
        """Keeps an adapter that is loaded already, from now on in `folder`; None for others."""
        served = self._served.get(digest)
        if served is None:
            return None
        served.folder, served.is_open = folder, True
        return served.info

    def _count_read(self, served: S, started: float) -> None:
        served.read_seconds = time.monotonic() - started
        self.num_reads += 1
        self.total_read_seconds += served.read_seconds

    def _tell_unpinned(self) -> None:
        """Makes whoever waits on `_unpinned` look again."""
        self._tasks.start(self._notify_unpinned())

    async def _notify_unpinned(self) -> None:
        async with self._unpinned:
            self._unpinned.notify_all()


def require_digest(found: str, expected: str | None, folder: Path) -> None:
    """Raises `CheckpointMismatchError` for a folder that holds another adapter."""
    if expected is not None and found != expected:
        raise CheckpointMismatchError(
            f"{folder}: found an adapter with digest {found}, expected {expected}"
        )


def adapter_info(checkpoint: Checkpoint) -> AdapterInfo:
    return AdapterInfo(
        digest=checkpoint.digest,
        num_layers=len(checkpoint.layers),
        num_experts=checkpoint.num_experts,
        top_k=checkpoint.top_k,
        r=checkpoint.r,
        num_bytes=checkpoint.num_bytes,
        defaults=checkpoint.defaults,
        trained_load=checkpoint.trained_load,
    )
