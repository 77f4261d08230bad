"""What one server holds of shared limits before, during and after a time without the database. The
pool is the real one; no database is asked."""

from __future__ import annotations

from server.live.buckets import Bucket, Standing
from server.live.usage import LeasedUsage
from server.tenancy.allocation import Pool
from server.tenancy.leases import LEASE_SECONDS
from server.tenancy.records import Quota

LIMIT = 600
"""Ten tokens a second."""
QUOTA = Quota(tokens_per_minute=LIMIT)


class OneServer:
    """A server that shares with nobody, and the pool."""

    def __init__(self) -> None:
        self.pool = Pool.full(LIMIT, 0.0, refills=True)
        self.standing = Standing("before", until=LEASE_SECONDS)
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
    assert one.tokens(6.0).level == 0  # its leases have ended
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
