"""Swaps a tenant's adapter set, as one transaction.

Load and check every adapter of the wanted set; write it as the tenant's newest revision if nobody
was faster; make it live between two requests. The adapters that left are freed when the last
request that uses them ends. Until the write, giving up leaves nothing behind; after it, the
revision becomes live on every server that shares the database, this one included, even if this
process ends in between (`server/live/follower.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace

from remix_runtime.errors import RemixError
from server.live.adapters import UNSERVABLE, LiveAdapters
from server.live.follower import Follower
from server.live.metrics import LiveMetrics
from server.tenancy.directory import Directory
from server.tenancy.errors import (
    AdapterNotFoundError,
    InvalidValueError,
    NotFoundError,
    StaleRevisionError,
    UnknownAdapterError,
)
from server.tenancy.records import SetRevision


class BadSetError(RemixError):
    """Adapters of a wanted set cannot be served (422). `reasons`: why, by their names in the set.

    The set that was live goes on.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        super().__init__(f"the set was not changed: {some}{more}")
        self.reasons = dict(reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapResult:
    """The result of a swap. `before` and `after` are the same revision where nothing was written:
    in a dry run, whose `after` has the wanted adapters, and where the set already was as wanted."""

    before: SetRevision
    after: SetRevision
    seconds: float
    dry_run: bool

    @property
    def added(self) -> tuple[str, ...]:
        return tuple(sorted(self.after.adapters.keys() - self.before.adapters.keys()))

    @property
    def removed(self) -> tuple[str, ...]:
        return tuple(sorted(self.before.adapters.keys() - self.after.adapters.keys()))

    @property
    def changed(self) -> tuple[str, ...]:
        """Names that get another digest."""
        before, after = self.before.adapters, self.after.adapters
        return tuple(sorted(n for n in before.keys() & after.keys() if before[n] != after[n]))


class Swaps:
    """Changes of sets that are asked of this process. Any number may run at the same time."""

    def __init__(
        self,
        directory: Directory,
        adapters: LiveAdapters,
        follower: Follower,
        metrics: LiveMetrics,
        *,
        base_name: str,
    ) -> None:
        self._directory = directory
        self._adapters = adapters
        self._follower = follower
        self._metrics = metrics
        self._base_name = base_name

    async def put(
        self,
        tenant: str,
        adapters: Mapping[str, str],
        *,
        expected: int | None,
        actor: str,
        dry_run: bool = False,
    ) -> SwapResult:
        """Makes `adapters` the tenant's set, if its revision is `expected` (None: any).

        Raises `BadSetError`, and as `Directory.put_set` does. A dry run raises the same but writes
        nothing and leaves nothing loaded.
        """
        with self._counted():

            async def write() -> SetRevision:
                return await self._directory.put_set(
                    tenant, adapters, expected=expected, actor=actor
                )

            return await self._swap(
                tenant, adapters, expected=expected, write=None if dry_run else write
            )

    async def rollback(
        self, tenant: str, to: int, *, expected: int | None, actor: str
    ) -> SwapResult:
        """Makes the adapters of revision `to` the tenant's set again, as a new revision.
        Raises as `put` and `Directory.rollback_set` do."""
        with self._counted():
            adapters = (await self._directory.revision(tenant, to)).adapters

            async def write() -> SetRevision:
                return await self._directory.rollback_set(
                    tenant, to, expected=expected, actor=actor
                )

            return await self._swap(tenant, adapters, expected=expected, write=write)

    async def _swap(
        self,
        tenant: str,
        adapters: Mapping[str, str],
        *,
        expected: int | None,
        write: Callable[[], Awaitable[SetRevision]] | None,
    ) -> SwapResult:
        started = time.monotonic()
        unregistered = await self._directory.unregistered(adapters)
        before = await self._directory.current_set(tenant)
        # Before the costly part; the write compares again.
        if before.adapters != adapters and expected is not None and expected != before.revision:
            raise StaleRevisionError(tenant, found=before.revision, expected=expected)
        with self._adapters.pinned(adapters.values()):
            await self._load(tenant, adapters, set(unregistered.values()))
            if write is None:
                after = replace(before, adapters=dict(adapters))
            else:
                after = await write()
                self._follower.make_live(after)
        if write is not None:
            applied = after.revision != before.revision
            self._metrics.swaps.labels("applied" if applied else "unchanged").inc()
        seconds = time.monotonic() - started
        self._metrics.swap.observe(seconds)
        return SwapResult(before=before, after=after, seconds=seconds, dry_run=write is None)

    async def _load(self, tenant: str, adapters: Mapping[str, str], unregistered: Set[str]) -> None:
        refused = {digest: str(AdapterNotFoundError(digest)) for digest in unregistered}
        digests = sorted(set(adapters.values()) - unregistered)
        results = await asyncio.gather(
            *(self._adapters.load(digest, tenant) for digest in digests), return_exceptions=True
        )
        for digest, result in zip(digests, results, strict=True):
            if isinstance(result, UNSERVABLE):
                refused[digest] = str(result)
            elif isinstance(result, BaseException):
                raise result
        reasons = {name: refused[digest] for name, digest in adapters.items() if digest in refused}
        if self._base_name in adapters:
            reasons[self._base_name] = "this is the base model's name"
        if reasons:
            raise BadSetError(reasons)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except StaleRevisionError:
            self._metrics.swaps.labels("stale").inc()
            raise
        except (BadSetError, InvalidValueError, NotFoundError, UnknownAdapterError):
            self._metrics.swaps.labels("refused").inc()
            raise
        except Exception:
            self._metrics.swaps.labels("failed").inc()
            raise
