"""Quotas of tenants, as limits of this process: requests and tokens per minute, concurrency.

A minute's limit is a bucket that starts full and refills continuously, so no window of `t` seconds
sees more than `limit + limit * t / 60`. Tokens are reserved before a generation and what it did not
use is given back; that holds for what remains used, too. Text is tokenized only while the tokens
that it has at least are reserved, and `TOKENIZED_SHARE` of what was tokenized is used, whatever
becomes of it.
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

TOKENIZED_SHARE = 0.1
"""What a token that was only tokenized costs of one that is computed."""


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
        admission = Admission(usage, self._clock, quota.max_concurrent)
        admission.require_places(1)
        if usage.requests is not None:
            admission.take(usage.requests, 1, "requests")
        admission.take_places(1)
        return admission


class Admission:
    """One request that was let in; leaving it (`with`) gives its places back. Tokens that were
    reserved and not settled by then count as used."""

    def __init__(
        self, usage: _Usage, clock: Callable[[], float], max_concurrent: int | None
    ) -> None:
        self._usage = usage
        self._requests = usage.requests
        self._tokens = usage.tokens
        self._clock = clock
        self._max_concurrent = max_concurrent
        self._places = 0
        self._reserved: _Reservation | None = None
        self._tokenized = 0

    def require_places(self, sequences: int) -> None:
        """Raises `RateLimitedError` where so many cannot be taken."""
        others, limit = self._usage.running - self._places, self._max_concurrent
        if limit is not None and others + sequences > limit:
            message = f"{others} sequences are running, the limit is {limit}"
            if sequences > 1:
                message += f", and this request has {sequences}"
            raise RateLimitedError(f"{message}.", retry_after=BUSY_SECONDS, headers=self.headers)

    def take_places(self, sequences: int) -> None:
        """Makes the request hold a place for each of its sequences. Raises `RateLimitedError`."""
        self.require_places(sequences)
        self._usage.running += sequences - self._places
        self._places = sequences

    def reserve_tokens(self, tokens: int, *, later: int = 0) -> None:
        """Reserves tokens, or more of them than before: the prompts' and the most that may be
        generated, before generating. `later`: tokens that must be there too, since they will be
        reserved. Raises `RateLimitedError`."""
        if self._tokens is None:
            return
        held = 0 if self._reserved is None else self._reserved.amount
        more = max(tokens - held, 0)
        self.take(self._tokens, more, "tokens", held=held, later=later)
        if self._reserved is None:
            self._reserved = self._tokens.hold(more)
        else:
            self._reserved.grow(more)

    def reserve_tokenizing(self, tokens: int) -> None:
        """Reserves what it costs to turn so many tokens into text, or text into them. Raises
        `RateLimitedError`."""
        self.reserve_tokens(_tokenizing(tokens))

    def tokenized(self, tokens: int) -> None:
        """Notes tokens that text was turned into, or that were turned into text."""
        self._tokenized += tokens

    def settle(self, used: int) -> None:
        """Gives back what was reserved and not used."""
        if self._tokens is not None and self._reserved is not None:
            used = max(used, _tokenizing(self._tokenized))
            self._tokens.close(self._reserved, used, self._clock())
            self._reserved = None

    def take(
        self, bucket: _Bucket, amount: int, unit: str, *, held: int = 0, later: int = 0
    ) -> None:
        """Raises `RateLimitedError` where not all of it is there; then what was `held` is lost."""
        if bucket.take(amount, self._clock(), later=later):
            return
        total = held + amount + later
        wait = bucket.wait_for(total)
        message = f"Rate limit reached for {unit}: limit {bucket.limit} per minute, "
        message += f"remaining {math.floor(bucket.level)}, requested {total}. "
        if total > bucket.limit:
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
        self._usage.running -= self._places
        self._places = 0
        if self._reserved is not None:
            self.settle(self._reserved.amount)


def _tokenizing(tokens: int) -> int:
    return math.ceil(tokens * TOKENIZED_SHARE)


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

    def grow(self, more: int) -> None:
        self.amount += more
        self.refundable += more


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

    def take(self, amount: int, now: float, *, later: int) -> bool:
        """Takes all, or nothing where it is not there together with what is taken `later`."""
        self.refill(now)
        if amount + later > self.level:
            return False
        self.level -= amount
        return True

    def wait_for(self, amount: int) -> float:
        """The seconds after which to try again."""
        if amount > self.limit:
            return MINUTE
        # A millisecond more than needed: rounding must not refuse those who wait so long.
        return self.seconds_until(amount) + 0.001

    def hold(self, amount: int) -> _Reservation:
        """Makes what was just taken something that can be given back."""
        reservation = _Reservation(amount, amount)
        self._open[reservation] = None
        return reservation

    def close(self, reservation: _Reservation, used: int, now: float) -> None:
        self.refill(now)
        del self._open[reservation]
        unused = reservation.amount - used
        # More may have been tokenized than the least that was reserved for it.
        self.level = max(self.level + min(unused, reservation.refundable), 0.0)

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
