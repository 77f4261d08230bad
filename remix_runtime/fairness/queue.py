"""Decides whose turn it is: fair service between tenants by virtual token counters. Pure Python.

The algorithm is VTC (arXiv 2401.00588, algorithm 2). Every tenant has a counter of the weighted
tokens that it was served; the next request is the oldest one of the waiting tenant with the
smallest counter. Prompts are counted when they are admitted, output tokens as they come. A tenant
that comes back after a pause is lifted to the smallest counter of those that wait, so that a pause
earns no credit. `service_bound` says how far two waiting tenants can drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import takewhile
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2
"""The paper's weights. An output token costs a step of its own, a prompt's tokens share one."""


def service_bound(longest_prompt: int, batch_tokens: int) -> int:
    """The most by which the weighted service of two tenants can differ over any time in which both
    have requests waiting (theorem 4.4). `batch_tokens`: the most tokens that a running batch can
    hold."""
    return 2 * max(PROMPT_WEIGHT * longest_prompt, OUTPUT_WEIGHT * batch_tokens)


class FairQueue(Generic[T]):
    """Waiting items in fair order between tenants, in order of arrival inside a tenant."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[T, None]] = {}
        self._counters: dict[str, int] = {}
        self._last_left: str | None = None

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def counter(self, tenant: str) -> int:
        return self._counters.get(tenant, 0)

    def add(self, tenant: str, item: T) -> None:
        if tenant not in self._waiting:
            self._lift(tenant)
            self._waiting[tenant] = {}
        self._waiting[tenant][item] = None

    def put_back(self, tenant: str, item: T, *, behind: Callable[[T], bool]) -> None:
        """Adds an item that was taken out before, in front of its tenant's others but for those
        first ones that it comes `behind`."""
        self.add(tenant, item)
        others = [other for other in self._waiting[tenant] if other != item]
        first = list(takewhile(behind, others))
        self._waiting[tenant] = dict.fromkeys([*first, item, *others[len(first) :]])

    def remove(self, tenant: str, item: T) -> bool:
        """Takes an item out, admitted or not. Returns False for one that does not wait."""
        items = self._waiting.get(tenant, {})
        if item not in items:
            return False
        del items[item]
        if not items:
            del self._waiting[tenant]
            self._last_left = tenant
        return True

    def charge(self, tenant: str, amount: int) -> None:
        self._counters[tenant] = self.counter(tenant) + amount

    def charge_prompt(self, tenant: str, num_tokens: int) -> None:
        self.charge(tenant, PROMPT_WEIGHT * num_tokens)

    def charge_output(self, tenant: str, num_tokens: int = 1) -> None:
        self.charge(tenant, OUTPUT_WEIGHT * num_tokens)

    def lead(self, tenant: str) -> int:
        """How far a tenant is ahead of the waiting one with the smallest counter."""
        return self.counter(tenant) - self._smallest()

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Items by their tenants' counters; of equal ones the tenant that waits longer comes first.
        Charging or removing ends the iteration."""
        for tenant in sorted(self._waiting, key=self.counter):
            for item in self._waiting[tenant]:
                yield tenant, item

    def _smallest(self) -> int:
        return min(map(self.counter, self._waiting), default=0)

    def _lift(self, tenant: str) -> None:
        if self._waiting:
            floor = self._smallest()
        elif self._last_left is not None:
            floor = self.counter(self._last_left)
        else:
            return
        self._counters[tenant] = max(self.counter(tenant), floor)
