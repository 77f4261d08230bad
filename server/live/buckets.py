"""What is left of a tenant's limit by the minute, in this process."""

from __future__ import annotations

from dataclasses import dataclass

from server.tenancy.allocation import MINUTE, Answer

REPORT_SECONDS = 1.0
"""Seconds after which a server reports what it holds of shared limits, at the latest."""


@dataclass(eq=False, slots=True)
class Reservation:
    amount: int
    refundable: float

    def grow(self, more: int) -> None:
        self.amount += more
        self.refundable += more


class Bucket:
    """Up to `limit` units, refilled by as many in a minute.

    A refund comes late: the bucket has refilled meanwhile, and both together would let a burst
    through. So what is there and what may come back never exceed the limit together; what refills
    beyond that is taken from the refunds, the oldest first.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.level = float(limit)
        self.taken = 0.0
        """Units ever taken, less those that came back."""
        self._updated = now
        self._open: dict[Reservation, None] = {}

    @property
    def most(self) -> float:
        """What it has when it is full."""
        return self.limit

    @property
    def per_second(self) -> float:
        """What it refills by."""
        return self.limit / MINUTE

    @property
    def open(self) -> float:
        """What may come back of reservations."""
        return sum(item.refundable for item in self._open)

    def left(self, now: float) -> float:
        """What a request could have, as far as is known here."""
        self.refill(now)
        return self.level

    def take(self, amount: int, now: float, *, later: int) -> bool:
        """Takes all, or nothing where it is not there together with what is taken `later`."""
        self.refill(now)
        if amount + later > self.level:
            return False
        self.level -= amount
        self.taken += amount
        return True

    def wait_for(self, amount: int, now: float) -> float:
        """The seconds after which to try again."""
        if amount > self.most:
            return MINUTE
        # A millisecond more than needed: rounding must not refuse those who wait so long.
        return self.seconds_until(amount, now) + 0.001

    def seconds_until(self, level: float, now: float) -> float:
        return max(level - self.left(now), 0.0) * MINUTE / self.limit

    def hold(self, amount: int) -> Reservation:
        """Makes what was just taken something that can be given back."""
        reservation = Reservation(amount, amount)
        self._open[reservation] = None
        return reservation

    def close(self, reservation: Reservation, used: int, now: float) -> None:
        self.refill(now)
        del self._open[reservation]
        unused = min(reservation.amount - used, reservation.refundable)
        self.taken -= unused
        # More may have been tokenized than the least that was reserved for it.
        self.level = max(self.level + unused, min(self.level, 0.0))

    def resize(self, limit: int, now: float) -> None:
        """Changes the limit; what is used stays used."""
        self.refill(now)
        self.level = max(self.level + limit - self.limit, 0.0)
        self.limit = limit
        self.refill(now)

    def refill(self, now: float) -> None:
        self.level = min(self.level + (now - self._updated) * self.per_second, self.most)
        self._updated = now
        self._erode(self.level + self.open - self.most)

    def full(self, now: float) -> bool:
        self.refill(now)
        return self.level == self.most

    def _erode(self, excess: float) -> float:
        """Takes from what may come back, and returns what was not there."""
        for item in self._open:
            if excess <= 0:
                break
            lost = min(item.refundable, excess)
            item.refundable -= lost
            excess -= lost
        return max(excess, 0.0)


@dataclass(slots=True, kw_only=True)
class Standing:
    """What this server is among those that share quotas."""

    server: str = ""
    """Its name, a new one whenever it comes too late to renew its leases."""
    until: float
    """When its leases end; its start, while it never had any."""
    servers: int = 1
    """How many there were at the last exchange, itself among them."""


class LeasedBucket(Bucket):
    """A server's part of a limit that several servers share: what it holds was leased, and only
    leases add to it.

    Once the leases have ended it counts alone: nothing is left of them, and from that moment on it
    refills by an equal part of the limit, whenever it is looked at or made.
    """

    def __init__(self, limit: int, now: float, standing: Standing) -> None:
        super().__init__(limit, now)
        self._standing = standing
        self._server: str | None = None
        """As which the server holds what is here."""
        self.alone = now >= standing.until
        self._taken_leased = 0.0
        """What was taken when it began to count alone."""
        self._forget()
        if self.alone:
            self._updated = standing.until
        self._elsewhere = float(limit)
        """What was free, or in the hands of other servers, at the last exchange."""
        self._asked = now

    @property
    def most(self) -> float:
        return max(self.limit / self._standing.servers, 1.0) if self.alone else self.limit

    @property
    def per_second(self) -> float:
        """While it is leased, the refill is the pool's."""
        return self.limit / MINUTE / self._standing.servers if self.alone else 0.0

    @property
    def owed(self) -> float:
        """What it has used while it counts alone, and what has not come back since. What it had
        leased before is not in it: the pool takes that for used."""
        return max(min(self.taken - self._taken_leased, self.most - self.level), 0.0)

    def left(self, now: float) -> float:
        self.refill(now)
        if self.alone:
            return self.level
        refilled = (now - self._asked) * self.limit / MINUTE
        return min(self.level + self._elsewhere + refilled, self.limit - self.open)

    def seconds_until(self, level: float, now: float) -> float:
        rate = self.per_second or self.limit / MINUTE
        return max(level - self.left(now), 0.0) / rate

    def wait_for(self, amount: int, now: float) -> float:
        wait = super().wait_for(amount, now)
        # What other servers hold is here after their next report.
        return wait if self.alone else max(wait, REPORT_SECONDS)

    def refill(self, now: float) -> None:
        if not self.alone and now >= self._standing.until:
            self.alone, self._taken_leased = True, self.taken
            self._forget()
            self._updated = self._standing.until
        super().refill(now)

    def resize(self, limit: int, now: float) -> None:
        """What is used stays used: the pool sees to that."""
        self.refill(now)
        self.limit = limit
        self.refill(now)

    def full(self, now: float) -> bool:
        """Whether there is nothing to remember."""
        self.refill(now)
        return self.level == (self.most if self.alone else 0.0) and not self._open

    def give_back(self, keep: float) -> float:
        """Takes what is more than `keep` away, for others. Of less than nothing, all is a debt."""
        back = min(self.level, max(self.level - keep, 0.0)) if self.level > 0 else self.level
        self.level -= back
        return back

    def granted(self, answer: Answer, now: float) -> None:
        """What an exchange has brought, which was asked for at `now`."""
        if self.alone or self._server != self._standing.server:
            self.alone, self._server = False, self._standing.server
            self._forget()
            self._updated = now
        self.limit = answer.limit
        self.level += answer.granted - self._erode(answer.eroded)
        self._elsewhere = max(answer.free, 0.0) + answer.elsewhere
        self._asked = now

    def _forget(self) -> None:
        self.level = 0.0
        for item in self._open:
            item.refundable = 0.0
