"""Quotas of tenants: requests and tokens per minute, concurrency. They are limits of this process,
or what it holds of those that it shares with other servers (`server/live/leasing.py`).

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
from functools import partial
from typing import Protocol, Self, TypeVar

from remix_runtime.errors import RemixError
from server.live.buckets import Bucket, Reservation
from server.live.usage import Usage
from server.tenancy.allocation import MINUTE
from server.tenancy.leases import PLACES
from server.tenancy.records import Quota

T = TypeVar("T")

BUSY_SECONDS = 1.0
"""Seconds after which to try again when it is not known which request ends next."""

TOKENIZED_SHARE = 0.1
"""What a token that was only tokenized costs of one that is computed."""


class RateLimitedError(RemixError):
    """A tenant's quota refuses the request. `retry_after` is in seconds."""

    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float,
        headers: dict[str, str],
        usage: Usage,
        lack: tuple[str, int],
    ) -> None:
        """`lack`: the limit, and how much of it is wanted."""
        super().__init__(message)
        self.retry_after = retry_after
        self.headers = headers
        self.usage = usage
        self.lack = lack


class Supply(Protocol):
    """Where more of a limit comes from than is here."""

    def usage(self) -> Usage:
        """Of a tenant that nothing is known of."""
        ...

    async def more(self, usage: Usage, name: str, amount: int, since: float) -> bool:
        """Waits for what a request lacks since this moment. Whether to look again."""
        ...


class NoSupply:
    """All there is of a limit is here."""

    def usage(self) -> Usage:
        return Usage()

    async def more(self, usage: Usage, name: str, amount: int, since: float) -> bool:
        return False


class Quotas:
    """What the tenants of this process use at the moment."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        supply: Supply | None = None,
        usage: dict[str, Usage] | None = None,
    ) -> None:
        """`usage`: where to keep it, by tenant, so that the supply finds it."""
        self._clock = clock
        self._supply = supply or NoSupply()
        self._usage: dict[str, Usage] = {} if usage is None else usage
        self._swept = clock()

    async def obtain(self, tenant: str, quota: Quota) -> Admission:
        """Admits a request, and waits a moment for what only other servers have of its quota.
        Raises `RateLimitedError`."""
        return await _obtained(partial(self.admit, tenant, quota), self._supply, self._clock)

    def admit(self, tenant: str, quota: Quota) -> Admission:
        """Counts one request and takes one place. A refused request counts for nothing. Raises
        `RateLimitedError`."""
        now = self._clock()
        if now - self._swept >= MINUTE:
            self._swept = now
            for idle in [name for name, item in self._usage.items() if item.idle(now)]:
                del self._usage[idle]
        usage = self._usage.get(tenant)
        if usage is None:
            usage = self._usage[tenant] = self._supply.usage()
        usage.limit(quota, now)
        admission = Admission(usage, self._clock, quota.max_concurrent, self._supply)
        admission.require_places(1)
        if usage.requests is not None:
            admission.take(usage.requests, 1, "requests")
        admission.take_places(1)
        return admission


class Admission:
    """One request that was let in; exiting it (`with`) gives its places back. Tokens that were
    reserved and not settled by then count as used; but see `keep_reserved`."""

    def __init__(
        self,
        usage: Usage,
        clock: Callable[[], float],
        max_concurrent: int | None,
        supply: Supply,
    ) -> None:
        self._usage = usage
        self._supply = supply
        self._requests = usage.requests
        self._tokens = usage.tokens
        self._clock = clock
        self._max_concurrent = max_concurrent
        self._places = 0
        self._reserved: Reservation | None = None
        self._tokenized = 0
        self._used_so_far: int | None = None

    def require_places(self, sequences: int) -> None:
        """Raises `RateLimitedError` where so many cannot be taken."""
        others, limit = self._usage.running - self._places, self._max_concurrent
        if limit is not None and others + sequences > self._usage.places(limit, self._clock()):
            message = f"{others} sequences are running, the limit is {limit}"
            if sequences > 1:
                message += f", and this request has {sequences}"
            if others + sequences <= limit:
                message += ", which other servers share"
            raise RateLimitedError(
                f"{message}.",
                retry_after=BUSY_SECONDS,
                headers=self.headers,
                usage=self._usage,
                lack=(PLACES, sequences - self._places),
            )

    async def obtain_places(self, sequences: int) -> None:
        """As `take_places`, and waits a moment for what only other servers have."""
        await _obtained(partial(self.take_places, sequences), self._supply, self._clock)

    async def obtain_tokens(self, tokens: int, *, later: int = 0) -> None:
        """As `reserve_tokens`, and waits a moment for what only other servers have."""
        act = partial(self.reserve_tokens, tokens, later=later)
        await _obtained(act, self._supply, self._clock)

    async def obtain_tokenizing(self, tokens: int) -> None:
        """Reserves what it costs to turn so many tokens into text, or text into them, as
        `obtain_tokens`."""
        await self.obtain_tokens(_tokenizing(tokens))

    def take_places(self, sequences: int) -> None:
        """Makes the request hold a place for each of its sequences. Raises `RateLimitedError`."""
        self.require_places(sequences)
        more = sequences - self._places
        self._usage.running += more
        self._usage.started += more
        self._places = sequences

    def reserve_tokens(self, tokens: int, *, later: int = 0) -> None:
        """Reserves tokens, or more of them than before: the prompts' and the most that may be
        generated, before generating. `later`: tokens that must be there too, since they will be
        reserved. Raises `RateLimitedError`."""
        if self._tokens is None:
            return
        held = 0 if self._reserved is None else self._reserved.amount
        more = max(tokens - held, 0)
        later = max(tokens + later - max(tokens, held), 0)
        self.take(self._tokens, more, "tokens", held=held, later=later)
        if self._reserved is None:
            self._reserved = self._tokens.hold(more)
        else:
            self._reserved.grow(more)

    def tokenized(self, tokens: int) -> None:
        """Notes tokens that text was turned into, or that were turned into text."""
        self._tokenized += tokens

    def keep_reserved(self, used: int) -> None:
        """Keeps what is reserved for another attempt at the same answer, so that nobody takes it
        in between. Where none settles it, so much of it was used."""
        self._used_so_far = used

    def settle(self, used: int) -> None:
        """Gives back what was reserved and not used."""
        if self._tokens is not None and self._reserved is not None:
            used = max(used, _tokenizing(self._tokenized))
            self._tokens.close(self._reserved, used, self._clock())
            self._reserved = None

    def take(
        self, bucket: Bucket, amount: int, unit: str, *, held: int = 0, later: int = 0
    ) -> None:
        """Raises `RateLimitedError` where not all of it is there; then what was `held` is lost."""
        now = self._clock()
        if bucket.take(amount, now, later=later):
            return
        total = held + amount + later
        wait = bucket.wait_for(total, now)
        message = f"Rate limit reached for {unit}: limit {bucket.limit} per minute, "
        message += f"remaining {_whole(bucket.left(now))}, requested {total}. "
        if total > bucket.most:
            message += f"This request alone is more than the limit: it must have fewer {unit}."
        else:
            message += f"Please try again in {duration(wait)}."
        raise RateLimitedError(
            message,
            retry_after=wait,
            headers=self.headers,
            usage=self._usage,
            lack=(unit, amount + later),
        )

    @property
    def headers(self) -> dict[str, str]:
        """The rate limit headers, as OpenAI sends them, for the limits that there are."""
        headers, now = {}, self._clock()
        for unit, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                reset = bucket.seconds_until(bucket.limit, now)
                headers[f"x-ratelimit-limit-{unit}"] = str(bucket.limit)
                headers[f"x-ratelimit-remaining-{unit}"] = str(_whole(bucket.left(now)))
                headers[f"x-ratelimit-reset-{unit}"] = duration(reset)
        return headers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._usage.running -= self._places
        self._places = 0
        if self._reserved is not None:
            used_so_far = self._used_so_far
            self.settle(self._reserved.amount if used_so_far is None else used_so_far)


async def _obtained(act: Callable[[], T], supply: Supply, clock: Callable[[], float]) -> T:
    """Tries again for as long as there is hope."""
    began = clock()
    while True:
        try:
            return act()
        except RateLimitedError as error:
            if not await supply.more(error.usage, *error.lack, began):
                raise


def _tokenizing(tokens: int) -> int:
    return math.ceil(tokens * TOKENIZED_SHARE)


def _whole(level: float) -> int:
    return max(math.floor(level), 0)


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: 20ms, 1.5s, 6m0s."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"
