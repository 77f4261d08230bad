"""Decides which replica gets a request: one that has its adapter, unless it is full. Pure Python.

A request goes to the replica that has its adapter and the fewest of this server's requests. Where
those replicas have no free place and another one has, that one gets it, and the adapter with it.
An adapter that no replica has goes to one with a free place that has the fewest adapters, among
equals where the adapter that would leave was unused the longest. A request for the base goes to
the replica with the fewest requests.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Lock


class Placement:
    """What one server knows of its replicas. Used by its event loop and by Ray's thread that
    routes."""

    def __init__(self, *, places: int, adapters: int, on_change: Callable[[], object]) -> None:
        """`places`: requests that a replica computes at the same time; `adapters`: those that it
        keeps. `on_change` is called, in any thread, when there are other replicas."""
        self._places = places
        self._most_adapters = adapters
        self._on_change = on_change
        self._lock = Lock()
        self._replicas: frozenset[str] = frozenset()
        self._load: Counter[str] = Counter()
        self._sent: set[str] = set()
        self._open: dict[str, tuple[str, str | None]] = {}
        """Replica and adapter of those of the sent requests that one was chosen for."""
        self._held: dict[str, OrderedDict[str, int]] = {}
        """When the adapters of each replica were last used, the one unused longest ago first."""
        self._clock = itertools.count(1)

    @property
    def replicas(self) -> frozenset[str]:
        """Those that run."""
        return self._replicas

    def set_replicas(self, replicas: Collection[str]) -> None:
        names = frozenset(replicas)
        with self._lock:
            changed, self._replicas = self._replicas != names, names
            self._held = {name: held for name, held in self._held.items() if name in names}
        if changed:
            self._on_change()

    def set_adapters(self, replica: str, digests: Sequence[str]) -> None:
        """Takes what a replica has, the one unused longest ago first. What is on its way there
        stays."""
        with self._lock:
            if replica not in self._replicas:
                return
            before: Mapping[str, int] = self._held.get(replica, {})
            coming = {digest for at, digest in self._open.values() if at == replica and digest}
            digests = [*digests, *(d for d in before if d in coming and d not in digests)]
            self._held[replica] = OrderedDict((d, before.get(d, 0)) for d in digests)

    def forget(self, digest: str) -> None:
        """No replica has the adapter any more."""
        with self._lock:
            for held in self._held.values():
                held.pop(digest, None)

    def send(self, request_id: str) -> None:
        """The request counts from now on until its release."""
        with self._lock:
            self._sent.add(request_id)

    def choose(
        self,
        replicas: Sequence[str],
        *,
        digest: str | None,
        request_id: str | None,
        queued: Mapping[str, int],
    ) -> list[str]:
        """The replicas in the order in which they should be asked; the first one counts as chosen.
        `queued`: requests of all servers that they are known to have, some of which may have
        ended."""
        self.set_replicas(replicas)
        with self._lock:
            order = self._order(replicas, digest, queued)
            if order:
                self._take(order[0], digest, request_id)
            return order

    def taken(self, replica: str, *, digest: str | None, request_id: str | None) -> None:
        """A replica accepted the request; it may not be the one that was chosen."""
        with self._lock:
            self._take(replica, digest, request_id)

    def release(self, request_id: str) -> None:
        """The request has ended."""
        with self._lock:
            self._sent.discard(request_id)
            self._leave(request_id)

    def _order(
        self, replicas: Sequence[str], digest: str | None, queued: Mapping[str, int]
    ) -> list[str]:
        def busy(name: str) -> tuple[int, int, str]:
            return self._load[name], queued.get(name, 0), name

        by_load = sorted(replicas, key=busy)
        if digest is None:
            return by_load
        free = [name for name in by_load if self._load[name] < self._places]
        homes = [name for name in by_load if digest in self._held.get(name, ())]
        if not homes or (free and homes[0] not in free):
            homes = sorted(free or by_load, key=self._room)[:1]
        return homes + [name for name in by_load if name not in homes]

    def _room(self, name: str) -> tuple[int, int]:
        """How many adapters a replica has, and when the one that leaves first was used."""
        held: Mapping[str, int] = self._held.get(name, {})
        return len(held), next(iter(held.values()), 0)

    def _take(self, replica: str, digest: str | None, request_id: str | None) -> None:
        if request_id in self._sent:
            assert request_id is not None
            self._leave(request_id)
            self._open[request_id] = replica, digest
            self._load[replica] += 1
        if digest is not None:
            held = self._held.setdefault(replica, OrderedDict())
            held[digest] = next(self._clock)
            held.move_to_end(digest)
            if len(held) > self._most_adapters:
                held.popitem(last=False)

    def _leave(self, request_id: str) -> None:
        found = self._open.pop(request_id, None)
        if found is not None:
            self._load[found[0]] -= 1
            if not self._load[found[0]]:
                del self._load[found[0]]


_placements: dict[str, Placement] = {}
"""By the names of applications. Ray makes routers by itself; there they find their server's."""


def register(app: str, placement: Placement) -> None:
    _placements[app] = placement


def placement_of(app: str) -> Placement:
    """Raises `KeyError` in a process whose server uses no such application."""
    return _placements[app]
