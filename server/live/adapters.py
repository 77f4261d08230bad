"""Keeps adapters in the engine while they are pinned: by live sets, running requests and running
swaps. With the last pin an adapter's memory is freed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from remix_runtime.adapter.checkpoint import read_defaults
from remix_runtime.background import BackgroundTasks
from remix_runtime.contracts import AdapterDefaults, AdapterInfo, Engine
from remix_runtime.errors import (
    AdapterUnavailableError,
    CapacityError,
    CheckpointError,
    EngineBusyError,
    RemixError,
)
from remix_runtime.fairness.shares import Shares
from remix_runtime.fairness.turns import FairTurns
from server.live.metrics import LiveMetrics
from server.store import StoreError
from server.tenancy.errors import AdapterNotFoundError

log = logging.getLogger(__name__)

LOADS_AT_ONCE = 4
"""The engine reads one adapter at a time, while parity files of others are replayed."""
RETRY_SECONDS = 5.0
"""Seconds for which requests for an adapter are refused after a load for one failed."""

UNSERVABLE = (AdapterNotFoundError, StoreError, CheckpointError, CapacityError)
"""What a load raises if the adapter is at fault, and not the server or the database."""

FolderOf = Callable[[str], Awaitable[Path]]
"""The folder of a digest. Raises `RemixError`."""


@dataclass(slots=True)
class _Entry:
    pins: int = 0
    info: AdapterInfo | None = None
    """Set while the engine has the adapter and takes requests for it."""
    load_seconds: float | None = None
    loading: dict[str, asyncio.Task[AdapterInfo]] = field(default_factory=dict)
    """By tenant: nobody waits until it is the turn of another who wants the same."""
    failed: float | None = None
    """When the last load failed, if nothing was loaded since."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Loading and unloading take turns."""


class LiveAdapters:
    """Pins on adapters by digest. Used on one event loop."""

    def __init__(self, engine: Engine, folder_of: FolderOf, metrics: LiveMetrics) -> None:
        self._engine = engine
        self._folder_of = folder_of
        self._metrics = metrics
        self._entries: dict[str, _Entry] = {}
        self._cold_waits = Shares(engine.model.max_requests)
        self._turns = FairTurns(LOADS_AT_ONCE)
        self._tasks = BackgroundTasks(log, "loading or unloading an adapter")

    def pin(self, digest: str) -> None:
        """Pins a digest; nothing is loaded yet."""
        self._entries.setdefault(digest, _Entry()).pins += 1

    def unpin(self, digest: str) -> None:
        entry = self._entries[digest]
        assert entry.pins > 0, "unpinned more often than pinned"
        entry.pins -= 1
        if not entry.pins:
            self._tasks.start(self._unload(digest, entry))

    @contextmanager
    def pinned(self, digests: Iterable[str]) -> Iterator[None]:
        held = list(digests)
        for digest in held:
            self.pin(digest)
        try:
            yield
        finally:
            for digest in held:
                self.unpin(digest)

    def adopt(self, info: AdapterInfo) -> None:
        """Takes note of an adapter that the engine has loaded already."""
        self._entries.setdefault(info.digest, _Entry()).info = info

    async def load(self, digest: str, tenant: str = "") -> AdapterInfo:
        """Makes the engine load an adapter that the caller has pinned; returns at once if it has
        it. A few are loaded at a time, in turns between tenants.

        Many calls are one load. Raises `UNSERVABLE`.
        """
        entry = self._entries[digest]
        if entry.info is not None:
            return entry.info
        loading = entry.loading.get(tenant)
        if loading is None or loading.done():
            loading = self._tasks.start(self._load(digest, entry, tenant))
            entry.loading[tenant] = loading
        return await self._tasks.result(loading)

    async def load_for_request(self, digest: str, tenant: str = "") -> None:
        """`load` for a request.

        Raises `AdapterUnavailableError` if the adapter cannot be loaded now, `EngineBusyError` if
        the tenant has its share of requests that wait for cold adapters; they are as many as the
        engine would take altogether.
        """
        entry = self._entries[digest]
        if entry.info is not None:
            return
        if entry.failed is not None and time.monotonic() - entry.failed < RETRY_SECONDS:
            raise AdapterUnavailableError(f"adapter {digest} could not be loaded a moment ago")
        if not self._cold_waits.take(tenant):
            raise EngineBusyError(
                f"{self._cold_waits.held(tenant)} of your requests wait for adapters that are not "
                "loaded yet"
            )
        try:
            with self._metrics.cold_wait.time():
                await self.load(digest, tenant)
        except UNSERVABLE as error:
            raise AdapterUnavailableError(f"adapter {digest}: {error}") from error
        finally:
            self._cold_waits.give_back(tenant)

    async def defaults(self, digest: str) -> AdapterDefaults:
        """What requests for the adapter have where they say nothing else, also while it is not
        loaded. Raises `AdapterUnavailableError`."""
        entry = self._entries.get(digest)
        if entry is not None and entry.info is not None:
            return entry.info.defaults
        try:
            return await asyncio.to_thread(read_defaults, await self._folder_of(digest))
        except UNSERVABLE as error:
            raise AdapterUnavailableError(f"adapter {digest}: {error}") from error

    def loaded(self, digests: Iterable[str]) -> bool:
        """Whether the engine takes requests for all of them at this moment."""
        entries = [self._entries.get(digest) for digest in digests]
        return all(entry is not None and entry.info is not None for entry in entries)

    def pins(self, digest: str) -> int:
        entry = self._entries.get(digest)
        return 0 if entry is None else entry.pins

    def load_seconds(self, digest: str) -> float | None:
        """Seconds that the last load took, waiting for others' included."""
        entry = self._entries.get(digest)
        return None if entry is None else entry.load_seconds

    @property
    def digests(self) -> set[str]:
        """Pinned digests: the store must keep their folders."""
        return set(self._entries)

    async def settle(self) -> None:
        """Waits for the loads and unloads that have begun."""
        await self._tasks.settle()

    async def _load(self, digest: str, entry: _Entry, tenant: str) -> AdapterInfo:
        async with self._turns.turn(tenant), entry.turn:
            if entry.info is not None:
                return entry.info
            if not entry.pins:  # and nobody would ever unload it
                raise AdapterUnavailableError(f"adapter {digest}: nobody waits for it any more")
            started = time.monotonic()
            try:
                info = await self._engine.load_adapter(await self._folder_of(digest))
            except RemixError:
                entry.failed = time.monotonic()
                raise
            assert info.digest == digest, "the store keeps folders by their digest"
            entry.load_seconds = time.monotonic() - started
            self._metrics.loads.observe(entry.load_seconds)
            entry.info, entry.failed = info, None
            return info

    async def _unload(self, digest: str, entry: _Entry) -> None:
        async with entry.turn:
            if entry.pins:  # somebody came back
                return
            if entry.info is not None:
                entry.info = None
                await self._engine.unload_adapter(digest)
        if not entry.pins and self._entries.get(digest) is entry:
            del self._entries[digest]
