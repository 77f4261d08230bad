"""The adapters of one replica: brought by servers, loaded in its engine, let go for others."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remix_runtime.background import BackgroundTasks
from remix_runtime.contracts import AdapterInfo, Engine
from remix_runtime.engines.ray.bundle import Bundle, make_root, unpack
from remix_runtime.engines.ray.messages import Load, summed_loads
from remix_runtime.errors import AdapterUnavailableError, CheckpointError

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 60.0
"""Seconds that a request waits for its adapter's bytes."""


@dataclass(slots=True, eq=False)
class _Kept:
    folder: Path
    pins: int = 0
    """Requests that use it."""
    is_dropped: bool = False
    """Whether a server has unloaded it: then nothing is remembered of it."""


class KeptAdapters:
    """At most so many adapters; the one unused longest ago leaves, as soon as no request uses it.
    They come from servers as bytes, and lie in a folder of this process while they are loaded."""

    def __init__(self, engine: Engine, most: int, get: Callable[[Any], bytes]) -> None:
        """`get` takes the chunks of a bundle out of the store."""
        self._engine = engine
        self._most = most
        self._get = get
        self._root = make_root()
        self._number = 0
        self._kept: dict[str, _Kept] = {}
        """The one unused longest ago first."""
        self._leaving: dict[str, _Kept] = {}
        """Those that had to go, while requests use them."""
        self._delivered: dict[str, Path] = {}
        """Those whose bytes have come and that no request has loaded yet."""
        self._arrivals: dict[str, asyncio.Event] = {}
        self._rounds: Counter[str] = Counter()
        self._changing = asyncio.Lock()
        self._counted: dict[str, Load] = {}
        """The load of experts from before an adapter left for another one."""
        # Every change is a task of its own: half of one is none when its caller goes away.
        self._tasks = BackgroundTasks(log, "loading or unloading an adapter")

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(self._kept)

    def __contains__(self, digest: str) -> bool:
        return digest in self._kept

    async def load(self, bundle: Bundle, digest: str | None, shown: str) -> AdapterInfo:
        """Validates an adapter that a server loads and keeps it. Raises `CheckpointError`, in which
        the folder is `shown`, `CapacityError`, and `AdapterUnavailableError` for a full disk."""
        return await self._tasks.result(self._tasks.start(self._load(bundle, digest, shown)))

    async def deliver(self, digest: str, bundle: Bundle) -> None:
        """Brings an adapter that requests wait for."""
        if digest not in self._kept and digest not in self._delivered:
            folder = await self._unpack(bundle)
            if self._delivered.setdefault(digest, folder) is not folder:
                await _remove(folder)
        self._wake(digest)

    def round_of(self, digest: str) -> int:
        """Another number each time that the adapter has left: what was asked for before that is no
        answer to what is asked for now."""
        return self._rounds[digest]

    async def pin(self, digest: str) -> bool:
        """Keeps an adapter as long as a request needs it; its bytes must have come, else returns
        False. Raises `AdapterUnavailableError`."""
        while digest not in self._kept:
            if (leaving := self._leaving.pop(digest, None)) is not None:
                leaving.is_dropped = False
                self._kept[digest] = leaving
                self._make_room()
            elif digest in self._delivered:
                await self._tasks.result(self._tasks.start(self._load_delivered(digest)))
            else:
                return False
        kept = self._kept[digest] = self._kept.pop(digest)
        kept.pins += 1
        return True

    def unpin(self, digest: str) -> None:
        kept = self._kept.get(digest) or self._leaving[digest]
        kept.pins -= 1
        if not kept.pins and digest in self._leaving:
            self._tasks.start(self._unload(digest))

    async def wait(self, digest: str) -> None:
        """Waits until the bytes of an adapter have come. Raises `AdapterUnavailableError`."""
        if digest in self._kept or digest in self._leaving or digest in self._delivered:
            return
        arrival = self._arrivals.setdefault(digest, asyncio.Event())
        try:
            await asyncio.wait_for(arrival.wait(), DELIVERY_SECONDS)
        except TimeoutError:
            raise AdapterUnavailableError(
                f"adapter {digest}: its bytes did not come", digest=digest
            ) from None

    async def drop(self, digest: str) -> None:
        """A server has unloaded the adapter. Another one whose requests use it keeps it."""
        if (delivered := self._delivered.pop(digest, None)) is not None:
            await _remove(delivered)
        kept = self._kept.pop(digest, None)
        if kept is not None:
            kept.is_dropped = True
            self._leaving[digest] = kept
            await self._tasks.result(self._tasks.start(self._unload(digest)))
        if digest not in self._leaving:
            self._counted.pop(digest, None)

    def expert_load(self, digest: str) -> Load:
        return summed_loads((self._engine.expert_load(digest), self._counted.get(digest, {})))

    async def _load(self, bundle: Bundle, digest: str | None, shown: str) -> AdapterInfo:
        folder = await self._unpack(bundle)
        async with self._changing:
            try:
                info = await self._engine.load_adapter(folder, digest)
            except BaseException as error:
                await _remove(folder)
                if not isinstance(error, CheckpointError):
                    raise
                raise type(error)(str(error).replace(str(folder), shown)) from None
            await self._keep(info.digest, folder)
        return info

    async def _load_delivered(self, digest: str) -> None:
        async with self._changing:
            folder = self._delivered.pop(digest, None)
            if folder is None:
                return
            try:
                await self._engine.load_adapter(folder, digest)
            except BaseException as error:
                self._rounds[digest] += 1
                await _remove(folder)
                if not isinstance(error, CheckpointError):
                    raise
                raise AdapterUnavailableError(f"adapter {digest}: {error}", digest=digest) from None
            await self._keep(digest, folder)

    async def _keep(self, digest: str, folder: Path) -> None:
        """Takes an adapter that the engine has loaded from this folder."""
        kept = self._kept.pop(digest, None) or self._leaving.pop(digest, None) or _Kept(folder)
        kept.is_dropped = False
        self._kept[digest] = kept
        before, kept.folder = kept.folder, folder
        self._make_room()
        self._wake(digest)
        if before != folder:
            await _remove(before)

    def _make_room(self) -> None:
        while len(self._kept) > self._most:
            digest = next(iter(self._kept))
            self._leaving[digest] = self._kept.pop(digest)
            self._tasks.start(self._unload(digest))

    async def _unload(self, digest: str) -> None:
        """Unloads an adapter that leaves, unless a request uses it."""
        async with self._changing:
            kept = self._leaving.get(digest)
            if kept is None or kept.pins:
                return
            del self._leaving[digest]
            self._rounds[digest] += 1
            counted = self.expert_load(digest)
            self._counted.pop(digest, None)
            if not kept.is_dropped:
                self._counted[digest] = counted
            await self._engine.unload_adapter(digest)
            await _remove(kept.folder)

    def _wake(self, digest: str) -> None:
        if arrival := self._arrivals.pop(digest, None):
            arrival.set()

    async def _unpack(self, bundle: Bundle) -> Path:
        self._number += 1
        folder = self._root / str(self._number)
        try:
            await asyncio.to_thread(unpack, bundle, self._get, folder)
        except OSError as error:
            await _remove(folder)
            raise AdapterUnavailableError(f"a replica has no place for it: {error}") from error
        return folder


async def _remove(folder: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
