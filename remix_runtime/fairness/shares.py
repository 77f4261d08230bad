"""Shares of a bounded number of places. Pure Python.

The rule, the same for whatever is bounded: what is free may be taken by anybody, and where nothing
is free, a tenant still gets a place while it holds fewer than its share. The share is the number of
places divided by the tenants that hold one, itself among them, and at least one. So a tenant alone
has all places, one that fills them is refused by itself only, and nobody is refused because of
others. More places than there are may be held then: with N tenants at most `most_held(places, N)`.
"""

from __future__ import annotations

from collections import Counter


def most_held(places: int, tenants: int) -> int:
    """The most places that so many tenants can hold together: their own, and what each had as its
    share when it was the second, third … one."""
    return places + sum(max(1, places // number) for number in range(2, tenants + 1)) + places // 2


class Shares:
    """Places and who holds them."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._held: Counter[str] = Counter()
        self._total = 0

    def held(self, tenant: str) -> int:
        return self._held[tenant]

    def has_place(self, tenant: str) -> bool:
        """Whether the tenant may take one more."""
        if self._total < self.places:
            return True
        held = self._held[tenant]
        tenants = len(self._held) + (not held)
        return held < max(1, self.places // tenants)

    def take(self, tenant: str) -> bool:
        """Takes a place. Returns False, and takes none, where the tenant may not."""
        if not self.has_place(tenant):
            return False
        self._held[tenant] += 1
        self._total += 1
        return True

    def give_back(self, tenant: str) -> None:
        assert self._held[tenant] > 0, "given back more often than taken"
        self._held[tenant] -= 1
        self._total -= 1
        if not self._held[tenant]:
            del self._held[tenant]
