"""Keeps this process's copy of the directory, and makes sets live.

One task follows the directory's changes. Keys and quotas act from the copy, so requests touch no
database; a set that another process wrote is loaded here and then made live, within the poll
interval plus the time to load. While the database does not answer, the copy goes on serving. These
tasks are watched (`remix_runtime/watch.py`): whatever fails is tried again.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from functools import partial

from remix_runtime.watch import TaskError, Watch, Watched
from server.live.adapters import LiveAdapters
from server.live.metrics import LiveMetrics
from server.live.sets import LiveSets
from server.tenancy.directory import Directory
from server.tenancy.records import SetRevision
from server.tenancy.snapshot import Snapshot

DIRECTORY_TASK = "directory"
SETS_TASK = "sets"
"""Names of the watched tasks."""

LOOK_SECONDS = 30.0
"""Seconds that a look at the directory may take, beyond the poll interval before it."""
LOAD_SECONDS = 600.0
"""Seconds that the adapters of a set may take to load."""
_LAST_PAUSE_SECONDS = 5.0
"""Seconds after which a database that is back is found, at the latest."""


class Follower:
    """Once started it has the first copy, and every set in it is live. Once stopped it follows no
    more."""

    def __init__(
        self,
        directory: Directory,
        adapters: LiveAdapters,
        sets: LiveSets,
        metrics: LiveMetrics,
        watch: Watch,
        *,
        poll_seconds: float,
    ) -> None:
        self._directory = directory
        self._adapters = adapters
        self._sets = sets
        self._metrics = metrics
        self._watch = watch
        self._poll_seconds = poll_seconds
        self._turn = asyncio.Lock()
        self._confirmed = 0.0
        self._made_live: Snapshot | None = None
        """The copy of which every set is live or being loaded."""
        self._loading: dict[str, _Loading] = {}
        """By tenant, the set that becomes live next."""
        self._following: Watched | None = None

    async def start(self) -> None:
        """Raises `DatabaseUnavailableError`. Adapters are loaded when they are first used."""
        asked = self._watch.time()
        self.snapshot: Snapshot = await self._directory.snapshot()
        self._confirmed = asked
        for tenant, state in self.snapshot.tenants.items():
            self._sets.flip(tenant, state.set.revision, state.set.adapters)
        self._follow_canaries()
        self._made_live = self.snapshot
        self._metrics.behind.set_function(lambda: len(self.set_lag()))
        self._metrics.directory_age.set_function(lambda: self.age_seconds)
        self._following = self._watch.start(
            DIRECTORY_TASK,
            self._follow,
            what="following the directory",
            due_seconds=self._poll_seconds + LOOK_SECONDS,
            last_pause_seconds=_LAST_PAUSE_SECONDS,
        )

    async def stop(self) -> None:
        tasks = [loading.task for loading in self._loading.values()]
        tasks += [self._following] if self._following else []
        for tenant in list(self._loading):
            self._stop_loading(tenant)
        await asyncio.gather(*(task.stop() for task in tasks))

    @property
    def age_seconds(self) -> float:
        """Seconds since the database last confirmed that the copy is right: the copy was read then,
        or the newest change was, and is the copy's."""
        return self._watch.time() - self._confirmed

    async def refresh(self) -> None:
        """Reads the copy again: it has everything that was committed before, and sets that others
        changed are being loaded. Raises `DatabaseUnavailableError`."""
        async with self._turn:  # or an older copy could come after a newer one
            # Who changes something refreshes, and so does the feed that tells of it: the second
            # of them, and all who waited their turn, find that the copy has it already.
            asked = self._watch.time()
            self.snapshot = await self._directory.snapshot(self.snapshot)
            self._confirmed = max(self._confirmed, asked)
        self._make_sets_live()

    def _make_sets_live(self) -> None:
        snapshot = self.snapshot
        known = snapshot.tenants
        for tenant in (self._sets.all.keys() | self._loading.keys()) - known.keys():
            self._sets.drop(tenant)
            self._stop_loading(tenant)
        failure: Exception | None = None
        for state in known.values():
            try:
                if self.make_live(state.set):
                    self._metrics.followed.inc()
            except Exception as error:
                failure = error  # the other tenants' sets do not wait for this one
        # Behind the sets: one that was promoted has its name by now.
        self._follow_canaries()
        if failure is not None:
            raise failure
        self._made_live = snapshot

    def _follow_canaries(self) -> None:
        tenants = self.snapshot.tenants.values()
        self._sets.canaries.follow(
            canary for state in tenants for canary in state.canaries.values()
        )

    def make_live(self, wanted: SetRevision) -> bool:
        """Flips to a set now if the engine has all its adapters, else when they are loaded; the
        older set goes on until then. Returns whether it flipped now."""
        tenant, live = wanted.tenant, self._sets.live(wanted.tenant)
        loading = self._loading.get(tenant)
        is_newer = wanted.revision > live.revision
        if is_newer and not self._adapters.loaded(wanted.adapters.values()):
            if loading is None or loading.revision < wanted.revision:
                self._stop_loading(tenant)
                self._start_loading(wanted)
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

    async def _follow(self, task: Watched) -> None:
        async with aclosing(self._directory.changes(self._poll_seconds)) as looks:
            async for newest in looks:
                if newest != self.snapshot.change:
                    await self.refresh()
                else:
                    self._confirmed = self._watch.time()
                    if self.snapshot is not self._made_live:  # the last try ended half-way
                        self._make_sets_live()
                task.beat()

    def _start_loading(self, wanted: SetRevision) -> None:
        pins = ExitStack()
        pins.enter_context(self._adapters.pinned(wanted.adapters.values()))
        task = self._watch.start(
            SETS_TASK,
            partial(self._load, wanted),
            what=f"loading revision {wanted.revision} of the set of {wanted.tenant}",
            due_seconds=LOAD_SECONDS,
            ends=True,
        )
        self._loading[wanted.tenant] = _Loading(wanted.revision, task, pins)

    async def _load(self, wanted: SetRevision, _task: Watched) -> None:
        """Loads a set that another process has found good, and makes it live. What fails is tried
        again, as long as the set is wanted."""
        digests = set(wanted.adapters.values())
        await asyncio.gather(*(self._adapters.load(d, wanted.tenant) for d in digests))
        loading = self._loading.get(wanted.tenant)
        if loading is None or loading.revision != wanted.revision:
            return  # given up at the very moment
        if self.make_live(wanted):
            self._metrics.followed.inc()
        if self._sets.live(wanted.tenant).revision < wanted.revision:
            raise TaskError("an adapter was unloaded while the others were loaded")

    def _stop_loading(self, tenant: str) -> None:
        if (loading := self._loading.pop(tenant, None)) is not None:
            loading.task.cancel()
            loading.pins.close()


@dataclass(frozen=True, slots=True)
class _Loading:
    revision: int
    task: Watched
    pins: ExitStack
    """Of the set's adapters, between two tries too."""
