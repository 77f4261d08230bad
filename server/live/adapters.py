"""Keeps adapters in the engine while they are pinned: by live sets, running requests and running
swaps. With the last pin an adapter's memory is freed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from remix_runtime.adapter.checkpoint import read_defaults
from remix_runtime.background import BackgroundTasks
from remix_runtime.contracts import AdapterDefaults, AdapterInfo, Engine
from remix_runtime.errors import (
    AdapterUnavailableError,
    CapacityError,
    CheckpointError,
    EngineBusyError,
)
from remix_runtime.fairness.shares import Shares
from remix_runtime.fairness.turns import FairTurns
from server.live.metrics import LiveMetrics
from server.store import StoreError
from server.tenancy.errors import AdapterNotFoundError

log = logging.getLogger(__name__)

ADAPTERS = "adapters"
"""What `failing` says while there are adapters that cannot be loaded or read again."""

LOADS_AT_ONCE = 4
"""The engine reads one adapter at a time, while parity files of others are replayed."""
RETRY_SECONDS = 5.0
"""Seconds for which requests for an adapter are refused after a load or a read for one failed;
twice as long after each that failed since."""
LAST_RETRY_SECONDS = 300.0

UNSERVABLE = (AdapterNotFoundError, StoreError, CheckpointError, CapacityError)
"""What a load raises if the adapter is at fault, and not the server or the database."""


class AdapterFolders(Protocol):
    """Where adapters lie. Both raise `RemixError`."""

    async def __call__(self, digest: str) -> Path:
        """The folder of a digest."""
        ...

    async def repair(self, digest: str) -> bool:
        """Puts a whole folder in the place of a damaged one. False where there is none: the folder
        is as it should be, or nobody but its owner may touch it."""
        ...


@dataclass(slots=True)
class _Entry:
    pins: int = 0
    info: AdapterInfo | None = None
    """Set while the engine has the adapter and takes requests for it."""
    load_seconds: float | None = None
    loading: dict[str, asyncio.Task[AdapterInfo]] = field(default_factory=dict)
    """By tenant: nobody waits until it is the turn of another who wants the same."""
    repair: asyncio.Task[bool] | None = None
    failures: int = 0
    """Loads and reads that failed since the last load or repair."""
    failed: float = 0.0
    """When the last of them failed."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Loading, repairing and unloading take turns."""

    def fail(self, *, is_lasting: bool) -> None:
        """`is_lasting`: the adapter is at fault, and not what it is loaded with. What fails in the
        same pause counts once."""
        if self.refused_seconds > 0:
            return
        now = time.monotonic()
        is_new = now - self.failed > 2 * LAST_RETRY_SECONDS
        self.failures = self.failures + 1 if is_lasting and not is_new else 1
        self.failed = now

    def heal(self) -> None:
        self.failures = 0

    @property
    def is_in_repair(self) -> bool:
        """Whether it is being repaired at this moment."""
        return self.repair is not None and not self.repair.done()

    @property
    def refused_seconds(self) -> float:
        """For how long requests are still refused."""
        if not self.failures:
            return 0.0
        pause = min(RETRY_SECONDS * 2.0 ** min(self.failures - 1, 20), LAST_RETRY_SECONDS)
        return max(0.0, self.failed + pause - time.monotonic())

    @property
    def is_unavailable(self) -> bool:
        is_lost = self.failures > 0 and self.info is None
        return is_lost or self.is_in_repair or self.refused_seconds > 0


class LiveAdapters:
    """Pins on adapters by digest. Used on one event loop."""

    def __init__(self, engine: Engine, folders: AdapterFolders, metrics: LiveMetrics) -> None:
        self._engine = engine
        self._folders = folders
        self._metrics = metrics
        self._entries: dict[str, _Entry] = {}
        self._used: set[str] = set()
        self._cold_waits = Shares(engine.model.max_requests)
        self._turns = FairTurns(LOADS_AT_ONCE)
        self._tasks = BackgroundTasks(log, "loading, repairing or unloading an adapter")
        metrics.unavailable.set_function(lambda: self.num_unavailable)

    def pin(self, digest: str) -> None:
        """Pins a digest; nothing is loaded yet."""
        self._entries.setdefault(digest, _Entry()).pins += 1
        self._used.add(digest)

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
        it. A folder that is damaged is repaired first. A few are loaded at a time, in turns between
        tenants.

        Many calls are one load. Raises `UNSERVABLE`.
        """
        entry = self._entries[digest]
        try:
            return await self._loaded(digest, entry, tenant)
        except CheckpointError:
            if entry.repair is None or not await self._tasks.result(entry.repair):
                raise
            return await self._loaded(digest, entry, tenant)

    async def _loaded(self, digest: str, entry: _Entry, tenant: str) -> AdapterInfo:
        if entry.info is not None:
            return entry.info
        loading = entry.loading.get(tenant)
        if loading is None or loading.done():
            loading = self._tasks.start(self._load(digest, entry, tenant))
            entry.loading[tenant] = loading
        return await self._tasks.result(loading)

    async def load_for_request(self, digest: str, tenant: str = "") -> None:
        """`load` for a request, which waits for no repair.

        Raises `AdapterUnavailableError` if the adapter cannot be loaded now, `EngineBusyError` if
        the tenant has its share of requests that wait for cold adapters; they are as many as the
        engine would take altogether.
        """
        entry = self._entries[digest]
        _require_available(digest, entry)
        if entry.info is not None:
            return
        if not self._cold_waits.take(tenant):
            raise EngineBusyError(
                f"{self._cold_waits.held(tenant)} of your requests wait for adapters that are not "
                "loaded yet"
            )
        try:
            with self._metrics.cold_wait.time():
                await self._loaded(digest, entry, tenant)
        except UNSERVABLE as error:
            raise AdapterUnavailableError(f"adapter {digest}: {error}", digest=digest) from error
        finally:
            self._cold_waits.give_back(tenant)

    async def defaults(self, digest: str) -> AdapterDefaults:
        """What requests for the adapter have where they say nothing else, also while it is not
        loaded. Raises `AdapterUnavailableError`."""
        entry = self._entries.get(digest)
        if entry is not None and entry.info is not None:
            return entry.info.defaults
        if entry is not None:
            _require_available(digest, entry)
        try:
            return await asyncio.to_thread(read_defaults, await self._folders(digest))
        except (*UNSERVABLE, OSError) as error:
            if entry is not None:
                entry.fail(is_lasting=True)
                if isinstance(error, CheckpointError):
                    self._start_repair(digest, entry)
            raise AdapterUnavailableError(f"adapter {digest}: {error}", digest=digest) from error

    def unreadable(self, digest: str) -> None:
        """The engine, which has the adapter, could not read it again: requests are refused for a
        while, and its folder is repaired where it is damaged."""
        entry = self._entries.get(digest)
        if entry is None or entry.info is None or entry.is_unavailable:
            return  # others have told of it, or its load failed
        entry.fail(is_lasting=True)
        self._start_repair(digest, entry)

    @property
    def num_unavailable(self) -> int:
        """Adapters that requests are refused for."""
        return sum(entry.is_unavailable for entry in self._entries.values())

    def loaded(self, digests: Iterable[str]) -> bool:
        """Whether the engine takes requests for all of them at this moment."""
        entries = [self._entries.get(digest) for digest in digests]
        return all(entry is not None and entry.info is not None for entry in entries)

    def pins(self, digest: str) -> int:
        entry = self._entries.get(digest)
        return 0 if entry is None else entry.pins

    def info(self, digest: str) -> AdapterInfo | None:
        """What the engine said of an adapter that it takes requests for."""
        entry = self._entries.get(digest)
        return None if entry is None else entry.info

    def take_used(self) -> set[str]:
        """The digests that were pinned since the last call."""
        used, self._used = self._used, set()
        return used

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
        if entry.repair is not None:  # a few that waited for it in their turn would hold up all
            await asyncio.wait({entry.repair})
        async with self._turns.turn(tenant), entry.turn:
            if entry.info is not None:
                return entry.info
            if not entry.pins:  # and nobody would ever unload it
                raise AdapterUnavailableError(f"adapter {digest}: nobody waits for it any more")
            started = time.monotonic()
            try:
                info = await self._engine.load_adapter(await self._folders(digest), digest)
            except Exception as error:
                entry.fail(is_lasting=isinstance(error, UNSERVABLE))
                if isinstance(error, CheckpointError):
                    self._start_repair(digest, entry)
                if isinstance(error, OSError):
                    raise AdapterUnavailableError(
                        f"adapter {digest}: {error}", digest=digest
                    ) from error
                raise
            entry.load_seconds = time.monotonic() - started
            self._metrics.loads.observe(entry.load_seconds)
            entry.info = info
            entry.heal()
            return info

    def _start_repair(self, digest: str, entry: _Entry) -> None:
        if not entry.is_in_repair:
            entry.repair = self._tasks.start(self._repair(digest, entry))

    async def _repair(self, digest: str, entry: _Entry) -> bool:
        async with entry.turn:
            try:
                repaired = await self._folders.repair(digest)
            except Exception as error:
                entry.fail(is_lasting=True)
                self._metrics.repairs.labels("failed").inc()
                log.error("adapter %s could not be repaired: %s", digest, error)
                raise
            if repaired:
                entry.heal()
                self._metrics.repairs.labels("repaired").inc()
            return repaired

    async def _unload(self, digest: str, entry: _Entry) -> None:
        async with entry.turn:
            if entry.pins:  # somebody came back
                return
            if entry.info is not None:
                entry.info = None
                await self._engine.unload_adapter(digest)
        if not entry.pins and self._entries.get(digest) is entry:
            del self._entries[digest]


def _require_available(digest: str, entry: _Entry) -> None:
    """Raises `AdapterUnavailableError`."""
    if entry.is_in_repair:
        raise AdapterUnavailableError(
            f"adapter {digest} is being repaired", digest=digest, retry_after=RETRY_SECONDS
        )
    if (seconds := entry.refused_seconds) > 0:
        raise AdapterUnavailableError(
            f"adapter {digest} could not be loaded a moment ago",
            digest=digest,
            retry_after=seconds,
        )
