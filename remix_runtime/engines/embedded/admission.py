"""Which waiting request may have a device slot now: far more adapters than slots. Pure Python.

Filling a slot costs a copy and pushes somebody out, so requests whose adapter has a slot pass
those whose adapter has none, as long as that would evict an adapter that others wait for. It ends
when `PATIENCE` requests were admitted since a request's turn came: then it is *overdue*, takes
the slot of any adapter that nothing pins, and where all are pinned, the adapters that run out
first are closed to newcomers until there is room. So a cold adapter waits for a bounded number of
admissions and then for the shortest of the running adapters' remaining work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from remix_runtime.engines.embedded.job import Job

PATIENCE = 32
"""Higher: fewer slot fills under load; lower: shorter waits for adapters without a slot. With
random traffic for twice as many adapters as slots, a slot is filled for 40 % of the requests at 0,
35 % at 8, 24 % at 16, 15 % at 32 and 10 % at 64 (`tests/unit/engines/test_admission.py`)."""


class AdapterSlots(Protocol):
    """What admission needs of the adapter bank."""

    @property
    def residents(self) -> tuple[str, ...]: ...

    def is_resident(self, digest: str) -> bool: ...

    def fits(self, digests: Collection[str], without: Collection[str]) -> bool:
        """Whether `digests` had slots and memory, were those of `without` gone."""
        ...

    def pin_slot(self, digest: str, keep: Collection[str] = ()) -> int | None:
        """Pins the adapter on the device and returns its slot; None while what is there is
        pinned or in `keep`."""
        ...

    def unpin_slot(self, digest: str) -> None: ...


class SlotRound:
    """One round of admission: jobs come in fair order and get a slot or have to wait.

    `wanted`: adapters that jobs wait for. `num_admitted`: so far, in the engine's life.
    """

    def __init__(
        self,
        adapters: AdapterSlots,
        *,
        wanted: Mapping[str, int],
        running: Sequence[Job],
        num_admitted: int,
    ) -> None:
        self._adapters = adapters
        self._wanted = wanted
        self._running = running
        self._num_admitted = num_admitted
        self._refused: set[str] = set()
        self._overdue: set[str] = set()
        """Adapters that room is being made for; nobody behind them takes it."""
        self._closed: set[str] = set()

    def pin(self, job: Job) -> int | None:
        """The slot of the job's adapter, pinned; None if it waits."""
        digest = job.request.digest
        assert digest is not None
        slot = None
        if self._adapters.is_resident(digest):
            if digest not in self._closed:
                slot = self._adapters.pin_slot(digest)
        elif digest not in self._overdue:
            slot = self._pin_cold(digest, self._is_overdue(job))
        if slot is None and job.turn_came is None:
            job.turn_came = self._num_admitted
        return slot

    def _is_overdue(self, job: Job) -> bool:
        came = job.turn_came
        return came is not None and self._num_admitted - came >= PATIENCE

    def _pin_cold(self, digest: str, overdue: bool) -> int | None:
        if digest in self._refused and not overdue:
            return None
        if not self._overdue:
            slot = self._adapters.pin_slot(digest, keep=() if overdue else self._wanted)
            if slot is not None:
                return slot
        if overdue:
            self._make_room(digest)
        else:
            self._refused.add(digest)
        return None

    def _make_room(self, digest: str) -> None:
        """Closes adapters, those that run out first, until there will be room."""
        self._overdue.add(digest)
        left = dict.fromkeys(self._adapters.residents, 0)
        for job in self._running:
            if (running := job.request.digest) is not None:
                left[running] = max(left[running], job.num_left)
        for resident in sorted(left.keys() - self._closed, key=lambda d: (left[d], d)):
            if self._adapters.fits(self._overdue, self._closed):
                return
            self._closed.add(resident)
