"""What one server holds of shared limits before, during and after a time without the database. The
pool is the real one; no database is asked."""

from __future__ import annotations

from typing import cast

import pytest

from remix_runtime.watch import Watch
from server.live.buckets import Bucket, Standing
from server.live.leasing import Lender
from server.live.quotas import Quotas, RateLimitedError
from server.live.usage import LeasedUsage
from server.tenancy.allocation import Pool
from server.tenancy.leases import LEASE_SECONDS, Leases
from server.tenancy.records import Quota
from tests.unit.live.conftest import StoppedClock

LIMIT = 600
"""Ten tokens a second."""
QUOTA = Quota(tokens_per_minute=LIMIT)


class OneServer:
    """A server that shares with nobody, and the pool."""

    def __init__(self) -> None:
        self.pool = Pool.full(LIMIT, 0.0, refills=True)
        self.standing = Standing(server="before", until=LEASE_SECONDS)
        self.usage = LeasedUsage(self.standing, 0.0)

    def exchange(self, now: float, server: str, *more: str) -> None:
        """`more`: the other names that are alive."""
        self.usage.limit(QUOTA, now)
        reports = self.usage.report(server, now)
        self.standing.server, self.standing.until = server, now + LEASE_SECONDS
        answer = self.pool.exchange(
            server, reports["tokens"], limit=LIMIT, alive=[server, *more], now=now
        )
        self.usage.take(reports, {"tokens": answer}, now)

    def tokens(self, now: float) -> Bucket:
        self.usage.limit(QUOTA, now)
        assert self.usage.tokens is not None
        self.usage.tokens.refill(now)
        return self.usage.tokens


def test_after_a_short_time_without_the_database_nothing_is_owed_that_was_not_used() -> None:
    one = OneServer()
    one.exchange(0.0, "before")
    assert one.tokens(0.0).take(LIMIT, 0.0, later=0)
    assert one.tokens(LEASE_SECONDS).level == 0  # its leases have ended
    one.exchange(7.0, "after", "before")
    one.exchange(9.0, "after")
    # All was used at 0, and nothing since: what has refilled from the end of the old name on.
    assert one.tokens(9.0).take(15, 9.0, later=0)


def test_what_was_used_without_the_database_is_owed_once() -> None:
    one = OneServer()
    one.exchange(0.0, "before")
    one.tokens(6.0)
    assert one.tokens(16.0).take(80, 16.0, later=0)
    one.exchange(18.0, "after")
    assert one.tokens(18.0).level + one.pool.free == 18 * 10 - 80
    one.exchange(19.0, "after")
    assert one.tokens(19.0).level + one.pool.free == 19 * 10 - 80


def test_what_was_used_long_ago_without_the_database_has_come_back() -> None:
    one = OneServer()
    one.exchange(0.0, "before")
    one.tokens(6.0)
    for now in (60.0, 120.0):
        assert one.tokens(now).take(500, now, later=0)
    one.tokens(600.0)
    one.exchange(600.0, "after")
    assert one.tokens(600.0).level == LIMIT


@pytest.mark.parametrize("is_known", [True, False])
def test_a_quiet_tenant_has_what_refilled_since_the_leases_ended(is_known: bool) -> None:
    one = OneServer()
    if is_known:
        one.exchange(0.0, "before")
        assert one.tokens(0.0).take(LIMIT, 0.0, later=0)
    one.standing.servers = 2
    assert one.tokens(LEASE_SECONDS + 12).level == 12 * 10 / 2
    assert not one.tokens(LEASE_SECONDS + 12).take(61, LEASE_SECONDS + 12, later=0)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_long_time_without_the_database_gives_a_quiet_tenant_its_part(is_known: bool) -> None:
    one = OneServer()
    if is_known:
        one.exchange(0.0, "before")
    one.standing.servers = 3
    tokens = one.tokens(600.0)
    assert tokens.take(LIMIT // 3, 600.0, later=0)
    assert not tokens.take(1, 600.0, later=0)


def test_a_tenant_that_is_forgotten_without_the_database_gains_and_loses_nothing() -> None:
    one = OneServer()
    one.exchange(0.0, "before")
    assert one.tokens(10.0).take(50, 10.0, later=0)
    assert not one.usage.idle(64.0)
    assert one.usage.idle(70.0)
    again = LeasedUsage(one.standing, 70.0)
    again.limit(QUOTA, 70.0)
    assert again.tokens is not None
    assert again.tokens.left(70.0) == one.tokens(70.0).left(70.0) == LIMIT


def test_a_server_that_never_had_leases_refills_from_its_start() -> None:
    clock = StoppedClock()
    database = cast(Leases, None)  # it is away, and nobody asks it
    lender = Lender(database, Watch(), clock)
    quotas = Quotas(clock, lender, lender.tenants)
    clock.now += 30
    with quotas.admit("a", QUOTA) as admission:
        admission.reserve_tokens(LIMIT // 2)
        with pytest.raises(RateLimitedError):
            admission.reserve_tokens(LIMIT // 2 + 1)
