"""Quotas of tenants, as limits of this process: requests and tokens per minute, concurrency.

A minute's limit is a bucket that starts full and refills continuously, so no window of `t` seconds
sees more than `limit + limit * t / 60`. Tokens are reserved before a generation and what it did not
use is given back; that holds for what remains used, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from remix_runtime.errors import RemixError
from server.tenancy.records import Quota

MINUTE = 60.0
BUSY_SECONDS = 1.0
"""Seconds after which to try again when it is not known which request ends next."""


class RateLimitedError(RemixError):
    """A tenant's quota refuses the request. `retry_after` is in seconds."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float, headers: dict[str, str]) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.headers = headers


class Quotas:
    """What the tenants of this process use at the moment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usage: dict[str, _Usage] = {}
        self._swept = clock()

    def admit(self, tenant: str, quota: Quota) -> Admission:
        """Counts one request and takes one place. A refused request counts for nothing. Raises
        `RateLimitedError`."""
        now = self._clock()
        if now - self._swept >= MINUTE:
            self._swept = now
            self._usage = {name: item for name, item in self._usage.items() if not item.idle(now)}
        usage = self._usage.setdefault(tenant, _Usage())
        usage.requests = _resized(usage.requests, quota.requests_per_minute, now)
        usage.tokens = _resized(usage.tokens, quota.tokens_per_minute, now)
        admission = Admission(usage, self._clock)
        if quota.max_concurrent is not None and usage.running >= quota.max_concurrent:
            message = f"{usage.running} requests are running, the limit is {quota.max_concurrent}."
            raise RateLimitedError(message, retry_after=BUSY_SECONDS, headers=admission.headers)
        if usage.requests is not None:
            admission.take(usage.requests, 1, "requests")
        usage.running += 1
        return admission


class Admission:
    """One request that was let in; leaving it (`with`) gives its place back. Tokens that were
    reserved and not settled by then count as used."""

    def __init__(self, usage: _Usage, clock: Callable[[], float]) -> None:
        self._usage = usage
        self._requests = usage.requests
        self._tokens = usage.tokens
        self._clock = clock
        self._reserved: _Reservation | None = None
        self._left = False

    def reserve_tokens(self, tokens: int) -> None:
        """Reserves tokens, once, before generating: the prompt's and the most that may be
        generated. Raises `RateLimitedError`."""
        assert self._reserved is None
        if self._tokens is not None:
            self.take(self._tokens, tokens, "tokens")
            self._reserved = self._tokens.hold(tokens)

    def settle(self, used: int) -> None:
        """Gives back what was reserved and not used."""
        if self._tokens is not None and self._reserved is not None:
            self._tokens.close(self._reserved, used, self._clock())
            self._reserved = None

    def take(self, bucket: _Bucket, amount: int, unit: str) -> None:
        wait = bucket.take(amount, self._clock())
        if wait == 0:
            return
        message = f"Rate limit reached for {unit}: limit {bucket.limit} per minute, "
        message += f"remaining {math.floor(bucket.level)}, requested {amount}. "
        if amount > bucket.limit:
            message += f"This request alone is more than the limit: it must have fewer {unit}."
        else:
            message += f"Please try again in {duration(wait)}."
        raise RateLimitedError(message, retry_after=wait, headers=self.headers)

    @property
    def headers(self) -> dict[str, str]:
        """The rate limit headers, as OpenAI sends them, for the limits that there are."""
        headers = {}
        for unit, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                bucket.refill(self._clock())
                headers[f"x-ratelimit-limit-{unit}"] = str(bucket.limit)
                headers[f"x-ratelimit-remaining-{unit}"] = str(math.floor(bucket.level))
                headers[f"x-ratelimit-reset-{unit}"] = duration(bucket.seconds_until(bucket.limit))
        return headers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._left:
            self._left = True
            self._usage.running -= 1
            if self._reserved is not None:
                self.settle(self._reserved.amount)


class _Usage:
    """What one tenant uses."""

    def __init__(self) -> None:
        self.requests: _Bucket | None = None
        self.tokens: _Bucket | None = None
        self.running = 0

    def idle(self, now: float) -> bool:
        """Whether forgetting it would change nothing."""
        buckets = (self.requests, self.tokens)
        return self.running == 0 and all(item is None or item.full(now) for item in buckets)


@dataclass(eq=False, slots=True)
class _Reservation:
    amount: int
    refundable: float


class _Bucket:
    """Up to `limit` units, refilled by as many in a minute.

    A refund comes late: the bucket has refilled meanwhile, and both together would let a burst
    through. So what is there and what may come back never exceed the limit together; what refills
    beyond that is taken from the refunds, the oldest first.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.level = float(limit)
        self._updated = now
        self._open: dict[_Reservation, None] = {}

    def take(self, amount: int, now: float) -> float:
        """Takes all or nothing. Returns 0, or the seconds after which to try again."""
        self.refill(now)
        if amount > self.limit:
            return MINUTE
        if amount > self.level:
            # A millisecond more than needed: rounding must not refuse those who wait so long.
            return self.seconds_until(amount) + 0.001
        self.level -= amount
        return 0.0

    def hold(self, amount: int) -> _Reservation:
        """Makes what was just taken something that can be given back."""
        reservation = _Reservation(amount, amount)
        self._open[reservation] = None
        return reservation

    def close(self, reservation: _Reservation, used: int, now: float) -> None:
        self.refill(now)
        del self._open[reservation]
        unused = max(reservation.amount - used, 0)
        self.level += min(unused, reservation.refundable)

    def resize(self, limit: int, now: float) -> None:
        """Changes the limit; what is used stays used."""
        self.refill(now)
        self.level = max(self.level + limit - self.limit, 0.0)
        self.limit = limit
        self.refill(now)

    def refill(self, now: float) -> None:
        self.level = min(self.level + (now - self._updated) * self.limit / MINUTE, self.limit)
        self._updated = now
        excess = self.level + sum(item.refundable for item in self._open) - self.limit
        for item in self._open:
            if excess <= 0:
                break
            lost = min(item.refundable, excess)
            item.refundable -= lost
            excess -= lost

    def seconds_until(self, level: float) -> float:
        return max(level - self.level, 0.0) * MINUTE / self.limit

    def full(self, now: float) -> bool:
        self.refill(now)
        return self.level == self.limit


def _resized(bucket: _Bucket | None, limit: int | None, now: float) -> _Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return _Bucket(limit, now)
    if bucket.limit != limit:
        bucket.resize(limit, now)
    return bucket


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: 20ms, 1.5s, 6m0s."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"
