"""Says which adapter is in which device slot: pins, a byte budget, who leaves first. Pure Python.

The tensors belong to the bank; this is the bookkeeping, so that scheduling can be tested without
them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _Resident:
    slot: int
    num_bytes: int
    pins: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an adapter goes, and the slots that were vacated for it, by digest."""

    slot: int
    evicted: Mapping[str, int]


class SlotTable:
    """Requests pin the slot of their adapter; of those that nothing pins, the one that was
    unpinned longest ago leaves first. The byte budget is respected at all times."""

    def __init__(self, num_slots: int, num_bytes: int) -> None:
        self.num_slots = num_slots
        self.num_bytes = num_bytes
        self.bytes_used = 0
        # Least recently unpinned first, in dict order.
        self._residents: dict[str, _Resident] = {}
        self._free = list(range(num_slots - 1, -1, -1))

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def residents(self) -> tuple[str, ...]:
        return tuple(self._residents)

    def slot(self, digest: str) -> int | None:
        resident = self._residents.get(digest)
        return None if resident is None else resident.slot

    def pins(self, digest: str) -> int:
        resident = self._residents.get(digest)
        return 0 if resident is None else resident.pins

    def fits(self, sizes: Collection[int], without: Collection[str]) -> bool:
        """Whether there would be slots and memory for adapters of these sizes if `without` were
        gone."""
        leaving = [self._residents[digest] for digest in without]
        free_bytes = self.num_bytes - self.bytes_used + sum(r.num_bytes for r in leaving)
        return len(sizes) <= len(self._free) + len(leaving) and sum(sizes) <= free_bytes

    def place(self, digest: str, num_bytes: int, keep: Collection[str] = ()) -> Placement | None:
        """Finds a slot for an adapter that has none, at the cost of adapters that nothing pins
        and that are not in `keep`. None, and no change, where that is not enough."""
        assert digest not in self._residents
        leaving: list[str] = []
        for other, resident in self._residents.items():
            if self.fits([num_bytes], leaving):
                break
            if not resident.pins and other not in keep:
                leaving.append(other)
        if not self.fits([num_bytes], leaving):
            return None
        evicted = {other: self.vacate(other) for other in leaving}
        slot = self._free.pop()
        self._residents[digest] = _Resident(slot, num_bytes)
        self.bytes_used += num_bytes
        return Placement(slot, evicted)

    def vacate(self, digest: str) -> int:
        """Takes an adapter that nothing pins out of its slot, which is returned."""
        resident = self._residents.pop(digest)
        assert not resident.pins, "an adapter in use must stay"
        self._free.append(resident.slot)
        self.bytes_used -= resident.num_bytes
        return resident.slot

    def pin(self, digest: str) -> int:
        resident = self._residents[digest]
        resident.pins += 1
        return resident.slot

    def unpin(self, digest: str) -> None:
        resident = self._residents.pop(digest)
        assert resident.pins > 0, "unpinned more often than pinned"
        resident.pins -= 1
        self._residents[digest] = resident  # to the end: the last to leave
