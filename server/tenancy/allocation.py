"""The arithmetic of a limit that several servers share: who holds how much of it.

A pool has the units that are free and a lease for each server with the units in its hands. Free and
leased units together are never more than the limit: units move between pool and servers, what is
used vanishes, and only the refill makes new ones, as far as there is room. So however many servers
there are, no window of `t` seconds sees more than `limit + limit * t / 60`. Nothing here knows the
time or a database.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

MINUTE = 60.0
NEED_SECONDS = 1.0
"""Seconds for which units are kept for a server whose requests wait for them."""
_SET_BACK_SECONDS = 5.0
"""A clock that is so much behind was set back."""


@dataclass(slots=True)
class Lease:
    """What one server holds, as of its last report and the answer to it."""

    held: float = 0.0
    open: float = 0.0
    """Of that, what reservations may still give back."""
    need: float = 0.0
    """What requests wait for."""
    since: float = 0.0
    """When that began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a server tells of one limit. It counts as given back before anybody has read it."""

    held: float
    open: float = 0.0
    back: float = 0.0
    """Units that it no longer holds and has not used; fewer than 0: it used more than it had."""
    need: float = 0.0
    """Units that its requests wait for, all or nothing."""
    want: float = 0.0
    """Units that it would like to have in stock besides."""
    owed: float = 0.0
    """Units that it used while it counted alone, and that have not come back since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    limit: int
    granted: float
    eroded: float
    """What its reservations may no longer give back: the pool has refilled meanwhile."""
    free: float
    """What is left in the pool."""
    elsewhere: float
    """What other servers hold and might give back."""
    gave: float
    """What the report gave back."""
    is_needed: bool
    """Whether requests wait at other servers."""


@dataclass(slots=True, kw_only=True)
class Pool:
    """One limit of one tenant. Those that do not refill are places: they come back when they are
    free again."""

    refills: bool
    limit: int
    free: float
    at: float
    """When it was refilled last."""
    pent: float = 0.0
    """What had no room to refill, since open reservations took it."""
    leases: dict[str, Lease] = field(default_factory=dict)

    @classmethod
    def full(cls, limit: int, now: float, *, refills: bool) -> Self:
        return cls(refills=refills, limit=limit, free=limit, at=now)

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Self:
        leases = {server: Lease(**lease) for server, lease in stored["leases"].items()}
        return cls(**{**stored, "leases": leases})

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    def exchange(
        self, server: str, report: Report, *, limit: int, alive: Collection[str], now: float
    ) -> Answer:
        """Takes a server's report and answers it. What servers held that are no longer `alive`
        counts as used."""
        self._resize(limit)
        for gone in self.leases.keys() - set(alive):
            del self.leases[gone]
        mine = self.leases.setdefault(server, Lease())
        gave = self._take_back(mine, report)
        eroded = self._refill(mine, now)
        granted = self._grant(mine, report, servers=max(len(alive), 1), now=now)
        others = [lease for lease in self.leases.values() if lease is not mine]
        if not (mine.held or mine.need):
            del self.leases[server]
        return Answer(
            limit=limit,
            granted=granted,
            eroded=eroded,
            free=self.free,
            elsewhere=sum(lease.held - lease.open for lease in others),
            gave=gave,
            is_needed=any(_waits(lease, now) for lease in others),
        )

    def _resize(self, limit: int) -> None:
        """What is used stays used."""
        self.free = max(self.free + limit - self.limit, min(self.free, 0.0))
        self.limit = limit

    def _take_back(self, mine: Lease, report: Report) -> float:
        if not self.refills:  # what runs, runs, whatever became of the lease
            gave, mine.held = mine.held - report.held, report.held
            return gave
        held = min(report.held, mine.held)
        gave = min(report.back, mine.held - held)
        self.free += gave - report.owed
        mine.held, mine.open = held, min(report.open, held)
        return gave

    def _refill(self, mine: Lease, now: float) -> float:
        held = sum(lease.held for lease in self.leases.values())
        if not self.refills:
            self.free, self.at = self.limit - held, now
            return 0.0
        new = max(now - self.at, 0.0) * self.limit / MINUTE
        self.at = now if self.at - now > _SET_BACK_SECONDS else max(self.at, now)
        room = max(self.limit - held - self.free, 0.0)
        self.free += min(new, room)
        # As in a bucket of one server: what refills takes from what may come back.
        open_ = sum(lease.open for lease in self.leases.values())
        self.pent = min(self.pent + max(new - room, 0.0), open_)
        eroded = min(self.pent, mine.open)
        self.pent -= eroded
        mine.open -= eroded
        mine.held -= eroded
        self.free += eroded
        return eroded

    def _grant(self, mine: Lease, report: Report, *, servers: int, now: float) -> float:
        """First what requests wait for, in the order in which they began to; of what nobody waits
        for, at most a server's part goes into its stock."""
        since = mine.since if _waits(mine, now) else now
        others = [item for item in self.leases.values() if item is not mine and _waits(item, now)]
        first = sum(item.need for item in others if item.since <= since)
        granted = 0.0
        if report.need:
            if report.need <= self.free - first:
                granted = report.need
                mine.need = 0.0
            else:
                mine.need, mine.since = report.need, since
        else:
            mine.need = 0.0
        spare = (self.free - granted - sum(item.need for item in others)) / servers
        granted += max(math.floor(min(report.want, spare)), 0)
        self.free -= granted
        mine.held += granted
        return granted


def _waits(lease: Lease, now: float) -> bool:
    return lease.need > 0 and abs(now - lease.since) < NEED_SECONDS
