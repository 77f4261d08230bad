"""The swap of a tenant's adapter set, as one transaction.

Load and check every adapter of the wanted set; write it as the tenant's newest revision if nobody
was faster; make it live between two requests. The adapters that left are freed when the last
request that uses them ends. Until the write, giving up leaves nothing behind; after it, the
revision becomes live on every server that shares the database, this one included, even if this
process ends in between (`server/live/follower.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from server.live.adapters import UNSERVABLE, LiveAdapters
from server.live.errors import BadSetError
from server.live.metrics import LiveMetrics
from server.live.sets import LiveSets
from server.tenancy.directory import Directory
from server.tenancy.errors import (
    AdapterNotFoundError,
    InvalidValueError,
    NotFoundError,
    StaleRevisionError,
    UnknownAdapterError,
)
from server.tenancy.records import SetRevision, check_entries


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapResult:
    """`before` and `after` are the same revision where nothing was written: in a dry run, whose
    `after` has the wanted entries, and where the set was as wanted already."""

    before: SetRevision
    after: SetRevision
    seconds: float

    @property
    def added(self) -> tuple[str, ...]:
        return tuple(sorted(self.after.entries.keys() - self.before.entries.keys()))

    @property
    def removed(self) -> tuple[str, ...]:
        return tuple(sorted(self.before.entries.keys() - self.after.entries.keys()))

    @property
    def changed(self) -> tuple[str, ...]:
        """Names that stand for another digest."""
        before, after = self.before.entries, self.after.entries
        return tuple(sorted(n for n in before.keys() & after.keys() if before[n] != after[n]))


class Swaps:
    """Changes of sets that are asked of this process. Any number may run at the same time."""

    def __init__(
        self, directory: Directory, adapters: LiveAdapters, sets: LiveSets, metrics: LiveMetrics
    ) -> None:
        self._directory = directory
        self._adapters = adapters
        self._sets = sets
        self._metrics = metrics

    async def put(
        self,
        tenant: str,
        entries: Mapping[str, str],
        *,
        expected: int | None,
        actor: str,
        dry_run: bool = False,
    ) -> SwapResult:
        """Makes `entries` the tenant's set, if its revision is `expected` (None: any).

        Raises `BadSetError`, and as `Directory.put_set` does. A dry run raises the same but writes
        nothing and leaves nothing loaded.
        """
        with self._counted():
            check_entries(entries)

            async def write() -> SetRevision:
                return await self._directory.put_set(
                    tenant, entries, expected=expected, actor=actor
                )

            return await self._swap(
                tenant, entries, expected=expected, write=None if dry_run else write
            )

    async def rollback(
        self, tenant: str, to: int, *, expected: int | None, actor: str
    ) -> SwapResult:
        """Makes the entries of revision `to` the tenant's set again, as a new revision.
        Raises as `put` and `Directory.rollback_set` do."""
        with self._counted():
            entries = (await self._directory.revision(tenant, to)).entries

            async def write() -> SetRevision:
                return await self._directory.rollback_set(
                    tenant, to, expected=expected, actor=actor
                )

            return await self._swap(tenant, entries, expected=expected, write=write)

    async def _swap(
        self,
        tenant: str,
        entries: Mapping[str, str],
        *,
        expected: int | None,
        write: Callable[[], Awaitable[SetRevision]] | None,
    ) -> SwapResult:
        started = time.monotonic()
        before = await self._directory.current_set(tenant)
        # Before the costly part; the write compares again.
        if before.entries != entries and expected is not None and expected != before.revision:
            raise StaleRevisionError(tenant, found=before.revision, expected=expected)
        with self._adapters.pinned(entries.values()):
            await self._load(entries)
            if write is None:
                after = replace(before, entries=dict(entries))
            else:
                after = await write()
                self._sets.flip(tenant, after.revision, after.entries)
        if write is not None:
            applied = after.revision != before.revision
            self._metrics.swaps.labels("applied" if applied else "unchanged").inc()
        seconds = time.monotonic() - started
        self._metrics.swap.observe(seconds)
        return SwapResult(before=before, after=after, seconds=seconds)

    async def _load(self, entries: Mapping[str, str]) -> None:
        reasons = {
            name: "this is the base model's name"
            for name in entries
            if name == self._sets.base_name
        }
        refused: dict[str, str] = {}
        try:
            await self._directory.require_adapters(entries)
        except UnknownAdapterError as error:
            refused = {
                digest: str(AdapterNotFoundError(digest)) for digest in error.entries.values()
            }
        digests = sorted(set(entries.values()) - refused.keys())
        results = await asyncio.gather(
            *(self._adapters.load(digest) for digest in digests), return_exceptions=True
        )
        for digest, result in zip(digests, results, strict=True):
            if isinstance(result, UNSERVABLE):
                refused[digest] = str(result)
            elif isinstance(result, BaseException):
                raise result
        reasons |= {n: refused[digest] for n, digest in entries.items() if digest in refused}
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
