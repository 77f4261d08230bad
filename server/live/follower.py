"""Keeps this process's copy of the directory, and makes sets live.

One task follows the directory's changes. Keys and quotas act from the copy, so requests touch no
database; a set that another process wrote is loaded here and then made live, within the poll
interval plus the time to load. While the database does not answer, the copy goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass

from remix_runtime.errors import RemixError
from server.live.adapters import LiveAdapters
from server.live.metrics import LiveMetrics
from server.live.sets import LiveSets
from server.tenancy.directory import Directory
from server.tenancy.errors import DatabaseUnavailableError
from server.tenancy.records import SetRevision
from server.tenancy.snapshot import Snapshot

log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 60.0


class Follower:
    """Once started it has the first copy, and every set in it is live. Once stopped it follows no
    more."""

    def __init__(
        self,
        directory: Directory,
        adapters: LiveAdapters,
        sets: LiveSets,
        metrics: LiveMetrics,
        *,
        poll_seconds: float,
    ) -> None:
        self._directory = directory
        self._adapters = adapters
        self._sets = sets
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._turn = asyncio.Lock()
        self._confirmed = 0.0
        self._loading: dict[str, _Loading] = {}
        """By tenant, the set that becomes live next."""
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises `DatabaseUnavailableError`. Adapters are loaded when they are first used."""
        self.snapshot: Snapshot = await self._directory.snapshot()
        self._confirmed = time.monotonic()
        for tenant, state in self.snapshot.tenants.items():
            self._sets.flip(tenant, state.set.revision, state.set.adapters)
        self._metrics.behind.set_function(lambda: len(self.set_lag()))
        self._metrics.directory_age.set_function(lambda: self.age_seconds)
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        tasks = [loading.task for loading in self._loading.values()]
        self._loading.clear()
        tasks += [self._following] if self._following else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def age_seconds(self) -> float:
        """Seconds since the database last confirmed that the copy is right."""
        return time.monotonic() - self._confirmed

    async def refresh(self) -> None:
        """Reads the copy again: it has everything that was committed before, and sets that others
        changed are being loaded. Raises `DatabaseUnavailableError`."""
        async with self._turn:  # or an older copy could come after a newer one
            # Who changes something refreshes, and so does the feed that tells of it: the second
            # of them, and all who waited their turn, find that the copy has it already.
            self.snapshot = await self._directory.snapshot(self.snapshot)
            self._confirmed = time.monotonic()
        known = self.snapshot.tenants
        for tenant in (self._sets.all.keys() | self._loading.keys()) - known.keys():
            self._sets.drop(tenant)
            self._stop_loading(tenant)
        for state in known.values():
            if self.make_live(state.set):
                self._metrics.followed.inc()

    def make_live(self, wanted: SetRevision) -> bool:
        """Flips to a set now if the engine has all its adapters, else when they are loaded; the
        older set goes on until then. Returns whether it flipped now."""
        tenant, live = wanted.tenant, self._sets.live(wanted.tenant)
        loading = self._loading.get(tenant)
        is_newer = wanted.revision > live.revision
        if is_newer and not self._adapters.loaded(wanted.adapters.values()):
            if loading is None or loading.revision < wanted.revision:
                self._stop_loading(tenant)
                task = asyncio.create_task(self._load(wanted))
                self._loading[tenant] = _Loading(wanted.revision, task)
            return False
        flipped = self._sets.flip(tenant, wanted.revision, wanted.adapters)
        if loading is not None and loading.revision <= self._sets.live(tenant).revision:
            self._stop_loading(tenant)
        return flipped

    def set_lag(self) -> dict[str, tuple[int, int]]:
        """The (live, wanted) revisions of the tenants for which they differ."""
        return {
            tenant: (self._sets.live(tenant).revision, state.set.revision)
            for tenant, state in self.snapshot.tenants.items()
            if self._sets.live(tenant).revision < state.set.revision
        }

    async def _follow(self) -> None:
        async with aclosing(self._directory.changes(self._poll_seconds)) as looks:
            async for newest in looks:
                self._confirmed = time.monotonic()
                if newest == self.snapshot.change:
                    continue
                try:
                    await self.refresh()
                except DatabaseUnavailableError as error:
                    log.warning("changes of the directory are not read: %s", error)
                except Exception:
                    log.exception("changes of the directory are not read")  # the next ones may be

    async def _load(self, wanted: SetRevision) -> None:
        """Loads a set that another process has found good. What fails is tried again, as long as
        the set is wanted."""
        retry_seconds = _FIRST_RETRY_SECONDS
        with self._adapters.pinned(wanted.adapters.values()):
            while self._is_loading(wanted):
                try:
                    digests = set(wanted.adapters.values())
                    await asyncio.gather(*map(self._adapters.load, digests))
                except Exception as error:
                    # `gather` forgets that it was cancelled when a load fails at that moment.
                    if not self._is_loading(wanted):
                        return
                    log.error(
                        "revision %d of the set of %s is not live on this server; the old one "
                        "goes on, next try in %g s: %s",
                        wanted.revision,
                        wanted.tenant,
                        retry_seconds,
                        error,
                        exc_info=not isinstance(error, RemixError),
                    )
                    await asyncio.sleep(retry_seconds)
                    retry_seconds = min(2 * retry_seconds, _LAST_RETRY_SECONDS)
                else:
                    del self._loading[wanted.tenant]
                    if self.make_live(wanted):
                        self._metrics.followed.inc()

    def _is_loading(self, wanted: SetRevision) -> bool:
        loading = self._loading.get(wanted.tenant)
        return loading is not None and loading.revision == wanted.revision

    def _stop_loading(self, tenant: str) -> None:
        if (loading := self._loading.pop(tenant, None)) is not None:
            loading.task.cancel()


@dataclass(frozen=True, slots=True)
class _Loading:
    revision: int
    task: asyncio.Task[None]
