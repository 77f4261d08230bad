"""Requests whose adapter is not in host memory wait here while it is read. Pure Python.

One adapter is read at a time: what reading takes comes on top of the memory budget. Tenants take
turns, so that one with many cold adapters does not keep another's only one waiting. A request
that is ready, waiting for the scheduler or running, keeps its adapter in host memory.
"""

from __future__ import annotations

from typing import Protocol

from remix_runtime.engines.embedded.admission import PATIENCE
from remix_runtime.engines.embedded.scheduler import Scheduler
from remix_runtime.engines.embedded.sequence import Sequence


class HostMemory(Protocol):
    """What the tiers need of the adapter bank; see there."""

    def __contains__(self, digest: str) -> bool: ...

    def is_ready(self, digest: str) -> bool: ...

    def reserve(self, digest: str) -> bool: ...

    def cancel(self, digest: str) -> None: ...

    def use(self, digest: str) -> None: ...

    def unuse(self, digest: str) -> None: ...


class ColdRequests:
    """Waiting sequences by the adapter they need, and the tenants' turns."""

    def __init__(self) -> None:
        self._count = 0
        self._sequences: dict[str, dict[Sequence, None]] = {}
        self._turns: dict[str, dict[str, None]] = {}
        """By tenant, who has waited longest first: the digests it needs, the oldest first."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._sequences.get(_digest(sequence), ())

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(self._sequences)

    def add(self, sequence: Sequence) -> None:
        digest = _digest(sequence)
        self._count += 1
        self._sequences.setdefault(digest, {})[sequence] = None
        self._turns.setdefault(sequence.request.tenant, {})[digest] = None

    def remove(self, sequence: Sequence) -> None:
        digest, tenant = _digest(sequence), sequence.request.tenant
        sequences = self._sequences[digest]
        del sequences[sequence]
        self._count -= 1
        if not any(other.request.tenant == tenant for other in sequences):
            del self._turns[tenant][digest]
            if not self._turns[tenant]:
                del self._turns[tenant]
        if not sequences:
            del self._sequences[digest]

    def next(self) -> str | None:
        """The adapter whose turn it is; the same until `take`."""
        return next((next(iter(digests)) for digests in self._turns.values()), None)

    def take(self, digest: str) -> list[Sequence]:
        """All that wait for an adapter, in order of arrival. Their tenants go to the end."""
        sequences = list(self._sequences.pop(digest, ()))
        self._count -= len(sequences)
        for tenant in dict.fromkeys(sequence.request.tenant for sequence in sequences):
            digests = self._turns.pop(tenant)
            del digests[digest]
            if digests:
                self._turns[tenant] = digests
        return sequences


class Tiers:
    """Hands sequences to the scheduler as soon as their adapter is in host memory.

    When the adapter whose turn it is finds no room because all others are in use, and `PATIENCE`
    requests were admitted since, the door closes: newcomers wait here too, even for adapters that
    are ready, until one of those is unused and makes room.
    """

    def __init__(self, memory: HostMemory, scheduler: Scheduler) -> None:
        self._memory = memory
        self._scheduler = scheduler
        self._cold = ColdRequests()
        self._reading: str | None = None
        self._blocked_since: int | None = None

    @property
    def num_cold(self) -> int:
        return len(self._cold)

    def add(self, sequence: Sequence) -> None:
        adapter = sequence.request.digest
        if adapter is None:
            self._scheduler.add(sequence)
        elif self._memory.is_ready(adapter) and not self._is_closed:
            self._memory.use(adapter)
            self._scheduler.add(sequence)
        else:
            self._cold.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees all that it holds."""
        adapter = sequence.request.digest
        if adapter is not None and sequence in self._cold:
            self._cold.remove(sequence)
            return
        self._scheduler.finish(sequence)
        if adapter is not None:
            self._memory.unuse(adapter)

    def next_read(self) -> str | None:
        """The adapter that has to be read now; its memory is set aside until `read` or `failed`.
        None while one is being read, or none is needed, or there is no room."""
        if not self._is_closed:
            self._let_in()
        digest = self._cold.next()
        if self._reading is not None or digest is None:
            return None
        if not self._memory.is_ready(digest):
            if not self._memory.reserve(digest):
                if self._blocked_since is None:
                    self._blocked_since = self._scheduler.num_admitted
                return None
            self._reading = digest
        self._blocked_since = None
        self._let_in()
        return self._reading

    def read(self, digest: str) -> None:
        """The copy has come, or its adapter was removed meanwhile."""
        assert digest == self._reading
        self._reading = None
        self._let_in()

    def failed(self, digest: str) -> list[Sequence]:
        """The copy does not come: the sequences that waited for it, taken out."""
        assert digest == self._reading
        self._reading = None
        self._memory.cancel(digest)
        return self._cold.take(digest)

    @property
    def _is_closed(self) -> bool:
        since = self._blocked_since
        return since is not None and self._scheduler.num_admitted - since >= PATIENCE

    def _let_in(self) -> None:
        for digest in self._cold.digests:
            if self._memory.is_ready(digest):
                for sequence in self._cold.take(digest):
                    self._memory.use(digest)
                    self._scheduler.add(sequence)


def _digest(sequence: Sequence) -> str:
    assert sequence.request.digest is not None
    return sequence.request.digest
