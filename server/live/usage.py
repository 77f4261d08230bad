"""What one tenant uses at the moment: by itself in this process, or shared with other servers."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator, Mapping

from server.live.buckets import Bucket, LeasedBucket, Standing
from server.tenancy.allocation import Answer, Report
from server.tenancy.leases import PLACES
from server.tenancy.records import Quota

IDLE_SECONDS = 30.0
"""Seconds without a request after which a server keeps nothing of a tenant's quota in stock."""
BARREN_SECONDS = 0.5
"""Seconds for which a request does not wait for what another one has waited for in vain."""
_STOCK_SECONDS = 2.0
"""Seconds of the use so far that a stock lasts for."""
_STOCK_PART = 4
"""The stock of all servers together, where little is used, is the limit's part of this size."""
_LEAST_INTERVAL = 0.2
"""Seconds over which use is measured at least."""


class Usage:
    """A tenant that only this process serves."""

    def __init__(self) -> None:
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.running = 0
        """Sequences that hold a place."""
        self.started = 0
        """Places that were ever taken."""

    def limit(self, quota: Quota, now: float) -> None:
        """Makes the limits those of the quota."""
        self.requests = self._resized(self.requests, quota.requests_per_minute, now)
        self.tokens = self._resized(self.tokens, quota.tokens_per_minute, now)

    def places(self, limit: int, now: float) -> int:
        """How many sequences may run here."""
        return limit

    def idle(self, now: float) -> bool:
        """Whether forgetting it would change nothing."""
        return self.running == 0 and all(bucket.full(now) for _, bucket in self.buckets())

    def buckets(self) -> Iterator[tuple[str, Bucket]]:
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is not None:
                yield name, bucket

    def _resized(self, bucket: Bucket | None, limit: int | None, now: float) -> Bucket | None:
        if limit is None:
            return None
        if bucket is None:
            return self._bucket(limit, now)
        if bucket.limit != limit:
            bucket.resize(limit, now)
        return bucket

    def _bucket(self, limit: int, now: float) -> Bucket:
        return Bucket(limit, now)


class LeasedUsage(Usage):
    """A tenant that other servers may serve too. Keeps a small stock of each limit, so that most
    requests need not ask for it, and tells what it holds, lacks and gives back."""

    def __init__(self, standing: Standing, now: float) -> None:
        super().__init__()
        self._standing = standing
        self._server = ""
        """As which it holds its places."""
        self._places = 0
        """Places that it holds, taken or not."""
        self._max_places: int | None = None
        self.waiting: Counter[str] = Counter()
        """By limit, what requests wait for that they do not find here."""
        self.recalled = False
        """Another server needs what is in stock here."""
        self.answered = asyncio.Event()
        """Set by the next answer."""
        self._in_vain: dict[str, tuple[float, float]] = {}
        """By limit, what was waited for in vain, and until when that is remembered."""
        self._hungry = False
        """It got less than it wanted."""
        self._told: object = None
        self.reported = float("-inf")
        """When it made its last report."""
        self._used_at = now
        self._measured = now
        self._counted: Counter[str] = Counter()
        self._per_second: dict[str, float] = {}

    def limit(self, quota: Quota, now: float) -> None:
        super().limit(quota, now)
        self._max_places = quota.max_concurrent
        self._used_at = now

    def places(self, limit: int, now: float) -> int:
        if now >= self._standing.until:
            return limit // self._standing.servers
        return min(self._places, limit)

    def idle(self, now: float) -> bool:
        return super().idle(now) and not self._places and not self.waiting.total()

    def may_have(self, name: str, amount: float, now: float) -> bool:
        """Whether it is worth asking for."""
        in_vain, until = self._in_vain.get(name, (0.0, now))
        if now < until and amount >= in_vain:
            return False
        if name == PLACES:
            return self._max_places is not None and self.running + amount <= self._max_places
        return any(name == other and amount <= item.left(now) for other, item in self.buckets())

    def not_had(self, name: str, amount: float, now: float) -> None:
        self._in_vain[name] = amount, now + BARREN_SECONDS

    def due(self, now: float) -> bool:
        """Whether it has something to tell."""
        return (
            self.waiting.total() > 0
            or self.recalled
            or self._hungry
            or self._told != self._state()
            or any(bucket.open for _, bucket in self.buckets())
            or (self._is_quiet(now) and not self.idle(now))
        )

    def report(self, server: str, now: float) -> dict[str, Report]:
        """What it tells as this server, by limit. What it gives back it has no longer, whether the
        report arrives or not."""
        self._measure(now)
        self.reported = now
        reports = {}
        for name, bucket in self.buckets():
            assert isinstance(bucket, LeasedBucket)
            bucket.refill(now)
            lacking, stock = self.waiting[name], self._stock(name, bucket.limit, now)
            if bucket.alone:
                reports[name] = Report(held=0, need=lacking, want=stock, owed=bucket.owed)
                continue
            back = bucket.give_back(max(stock, lacking))
            need = max(lacking - bucket.level, 0.0)
            want = max(stock - bucket.level - need, 0.0)
            reports[name] = Report(
                held=bucket.level + bucket.open, open=bucket.open, back=back, need=need, want=want
            )
        if self._max_places is not None or self._places:
            lacking = self.waiting[PLACES]
            stock = self._stock(PLACES, self._max_places or 0, now)
            unused = max(self._places - self.running, 0) if server == self._server else 0
            kept = min(unused, max(stock, lacking))
            self._places = self.running + kept
            need = max(lacking - kept, 0)
            want = max(stock - kept - need, 0)
            reports[PLACES] = Report(held=self._places, need=need, want=want)
        self.recalled = False
        return reports

    def take(
        self, reports: Mapping[str, Report], answers: Mapping[str, Answer], now: float
    ) -> None:
        """Takes what the answers to reports of the moment `now` bring."""
        self._server = self._standing.server
        self._hungry = False
        for name, bucket in self.buckets():
            if name in answers and isinstance(bucket, LeasedBucket):
                bucket.granted(answers[name], now)
        if PLACES in answers:
            self._places += int(answers[PLACES].granted)
        elif PLACES in reports:  # there is no such limit any more
            self._places = 0
        for name, answer in answers.items():
            self._hungry |= answer.granted < math.floor(reports[name].want)
        self._told = self._state()
        self.wake()

    def wake(self) -> None:
        """Lets those who wait look again."""
        self.answered.set()
        self.answered = asyncio.Event()

    def _state(self) -> object:
        buckets = [(bucket.limit, bucket.level) for _, bucket in self.buckets()]
        return (self._max_places, self._places, self.running, buckets)

    def _is_quiet(self, now: float) -> bool:
        return now - self._used_at > IDLE_SECONDS and not self.running

    def _stock(self, name: str, limit: int, now: float) -> int:
        """Units to have at hand."""
        if self.recalled or self._is_quiet(now):
            return 0
        if self._standing.servers == 1:
            return limit
        least = limit / (_STOCK_PART * self._standing.servers)
        return math.floor(max(least, _STOCK_SECONDS * self._per_second.get(name, 0.0)))

    def _measure(self, now: float) -> None:
        if (seconds := now - self._measured) < _LEAST_INTERVAL:
            return
        used = Counter({name: bucket.taken for name, bucket in self.buckets()})
        used[PLACES] = self.started
        for name, number in used.items():
            rate = (number - self._counted[name]) / seconds
            self._per_second[name] = max(rate, self._per_second.get(name, 0.0) / 2)
        self._counted, self._measured = used, now

    def _bucket(self, limit: int, now: float) -> Bucket:
        return LeasedBucket(limit, now, self._standing)
