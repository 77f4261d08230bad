"""Many adapters for one model: all of them in host memory, the ones in use in device slots.

A slot is one index that is valid in the mixture table of every adapted layer. Requests pin the
slot of their adapter; when a slot is needed, the adapter that was unpinned longest ago leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from remix_runtime.checkpoint.types import Checkpoint
from remix_runtime.errors import CapacityError
from remix_runtime.kernels import MixtureTable, MixtureWeights
from remix_runtime.kernels.huge_pages import Arena


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter in host memory, laid out for the kernels of the bank's device."""

    digest: str
    layers: Mapping[str, MixtureWeights]
    num_bytes: int
    """What it takes on the host, and again on a device with memory of its own."""


@dataclass(slots=True)
class _Entry:
    adapter: HostAdapter
    slot: int | None = None
    pins: int = 0

    @property
    def num_bytes(self) -> int:
        return self.adapter.num_bytes


class AdapterBank:
    """Loaded adapters by digest. Used from one thread; nothing here waits.

    `tables`: one mixture table for each linear that could be adapted, by module name.
    `device_bytes` and `host_bytes` are respected at all times.
    """

    def __init__(
        self,
        tables: Mapping[str, MixtureTable],
        *,
        num_slots: int,
        device: torch.device | str = "cpu",
        device_bytes: int,
        host_bytes: int,
    ) -> None:
        self.num_slots = num_slots
        self._tables = tables
        self._device = torch.device(device)
        self._device_bytes = device_bytes
        self._host_bytes = host_bytes
        # Least recently unpinned first, in dict order.
        self._entries: dict[str, _Entry] = {}
        self._free_slots = list(range(num_slots - 1, -1, -1))

    @property
    def slots_used(self) -> int:
        return self.num_slots - len(self._free_slots)

    @property
    def host_bytes_used(self) -> int:
        return sum(entry.num_bytes for entry in self._entries.values())

    @property
    def device_bytes_used(self) -> int:
        return sum(entry.num_bytes for entry in self._entries.values() if entry.slot is not None)

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def prepare(self, checkpoint: Checkpoint) -> HostAdapter:
        """Lays an adapter out for this bank. Slow, and safe in any thread."""
        config = checkpoint.config
        layers = {
            name: MixtureWeights.from_layer(
                weights,
                config.top_k,
                config.routing_weight,
                plain=self._device.type != "cpu",
            )
            for name, weights in checkpoint.layers.items()
        }
        num_bytes = sum(weights.num_bytes for weights in layers.values())
        if all(weights.lanes for weights in layers.values()):
            # One behind the other: where the kernels read them, in as few pages as can be.
            arena = Arena(num_bytes)
            layers = {name: weights.moved(arena) for name, weights in layers.items()}
        return HostAdapter(checkpoint.digest, layers, num_bytes)

    def add(self, adapter: HostAdapter) -> None:
        """Takes an adapter into host memory; a digest that is there already stays as it is.

        Raises `CapacityError` when a budget cannot hold it.
        """
        if adapter.digest in self._entries:
            return
        num_bytes = adapter.num_bytes
        if num_bytes > self._device_bytes:
            raise CapacityError(
                f"adapter_bytes: the adapter takes {num_bytes} bytes on the device, "
                f"the budget is {self._device_bytes}"
            )
        if self.host_bytes_used + num_bytes > self._host_bytes:
            raise CapacityError(
                f"host_adapter_bytes: the adapter takes {num_bytes} bytes, "
                f"{self._host_bytes - self.host_bytes_used} of {self._host_bytes} are free"
            )
        self._entries[adapter.digest] = _Entry(adapter)

    def remove(self, digest: str) -> None:
        """Frees an adapter that nothing pins; an unknown digest is a no-op."""
        entry = self._entries.pop(digest, None)
        if entry is not None:
            assert entry.pins == 0, "an adapter in use must not be removed"
            self._vacate(entry)

    def acquire(self, digest: str) -> int | None:
        """Pins the adapter on the device and returns its slot.

        None, and no change, when neither a free slot nor memory can be had now because what is
        there is pinned.
        """
        entry = self._entries[digest]
        if entry.slot is None:
            if not self._make_room(entry.num_bytes):
                return None
            entry.slot = self._free_slots.pop()
            self._fill(entry.slot, entry.adapter)
        entry.pins += 1
        return entry.slot

    def release(self, digest: str) -> None:
        entry = self._entries.pop(digest)
        assert entry.pins > 0, "released more often than acquired"
        entry.pins -= 1
        self._entries[digest] = entry  # to the end: the last to be evicted

    def _make_room(self, num_bytes: int) -> bool:
        """Evicts until a slot and `num_bytes` are free; evicts nothing if that cannot be."""
        used, slots, leaving = self.device_bytes_used, len(self._free_slots), []
        for entry in self._entries.values():
            if slots and used + num_bytes <= self._device_bytes:
                break
            if entry.slot is not None and not entry.pins:
                leaving.append(entry)
                used -= entry.num_bytes
                slots += 1
        if not slots or used + num_bytes > self._device_bytes:
            return False
        for entry in leaving:
            self._vacate(entry)
        return True

    def _fill(self, slot: int, adapter: HostAdapter) -> None:
        for name, weights in adapter.layers.items():
            self._tables[name].set(slot, weights.to(self._device))

    def _vacate(self, entry: _Entry) -> None:
        if entry.slot is not None:
            for name in entry.adapter.layers:
                self._tables[name].clear(entry.slot)
            self._free_slots.append(entry.slot)
            entry.slot = None
