"""Many adapters for one model, in tiers: known by size, in host memory, in device slots.

An adapter that is known may be *ready*, its tensors in host memory; the one unpinned longest ago
is dropped when room is needed, and somebody reads it from disk again. A slot is one index that is
valid in the mixture table of every adapted layer; `slots.SlotTable` says who has which.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from remix_runtime.adapter.checkpoint.types import Checkpoint
from remix_runtime.engines.embedded.slots import SlotTable
from remix_runtime.errors import CapacityError
from remix_runtime.kernels import MixtureTable, MixtureWeights
from remix_runtime.kernels.huge_pages import Arena


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter in host memory, laid out for the kernels of the bank's device."""

    digest: str
    layers: Mapping[str, MixtureWeights]
    num_bytes: int
    """Bytes on the host, and as many on a device with memory of its own."""


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    modules: tuple[str, ...]
    num_experts: int | None
    """None on a device whose kernels do not count."""
    counts_Ln: torch.Tensor | None = None
    """int64: how often each of n experts was activated in each of L modules. The adapter's from its
    first slot on, as long as it is known, wherever its tensors are."""
    adapter: HostAdapter | None = None
    reserved: bool = False
    """Whether host memory is set aside for a copy that is being read."""
    pins: int = 0


class AdapterBank:
    """Adapters by digest. Used from one thread but for `prepare`; nothing here waits.

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
        self.host_bytes = host_bytes
        self.host_bytes_used = 0
        self.host_count = 0
        self.slot_fills = 0
        """How often an adapter was put into a slot."""
        self.slot_fill_seconds = 0.0
        self._tables = tables
        self._device = torch.device(device)
        self._slots = SlotTable(num_slots, device_bytes)
        # Least recently used first, in dict order.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    @property
    def num_slots(self) -> int:
        return self._slots.num_slots

    @property
    def slots_used(self) -> int:
        return len(self._slots)

    @property
    def device_bytes_used(self) -> int:
        return self._slots.bytes_used

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def slot(self, digest: str) -> int | None:
        return self._slots.slot(digest)

    def prepare(self, checkpoint: Checkpoint) -> HostAdapter:
        """Lays an adapter out for this bank. Slow, and safe in any thread."""
        mixtures = checkpoint.mixtures
        layers = {
            name: MixtureWeights.from_layer(
                weights,
                mixtures[name].top_k,
                mixtures[name].routing_weight,
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

    def expert_load(self, digest: str) -> dict[str, tuple[int, ...]]:
        """How often each expert of a known adapter was activated, by module; empty where nobody
        counts. Safe in any thread: each number is whole, but during a step some modules have
        counted its tokens and others have not."""
        entry = self._entries.get(digest)
        if entry is None or entry.num_experts is None:
            return {}
        if entry.counts_Ln is None:
            return dict.fromkeys(entry.modules, (0,) * entry.num_experts)
        return dict(zip(entry.modules, map(tuple, entry.counts_Ln.tolist()), strict=True))

    # -- host memory ----------------------------------------------------------------------------

    def add(self, adapter: HostAdapter) -> bool:
        """Makes an adapter known, and ready if there is room now. Returns whether it is ready.

        One that is known already stays as it is. Raises `CapacityError` when a budget can never
        hold it.
        """
        if adapter.digest not in self._entries:
            for name, budget in (
                ("adapter_bytes", self._slots.num_bytes),
                ("host_adapter_bytes", self.host_bytes),
            ):
                if adapter.num_bytes > budget:
                    raise CapacityError(
                        f"{name}: the adapter takes {adapter.num_bytes} bytes, "
                        f"the budget is {budget}"
                    )
            self._entries[adapter.digest] = self._entry(adapter)
            if self.reserve(adapter.digest):
                self.fill(adapter)
        return self.is_ready(adapter.digest)

    def _entry(self, adapter: HostAdapter) -> _Entry:
        # In the model's order, and the names that every adapter shares.
        modules = tuple(name for name in self._tables if name in adapter.layers)
        assert len(modules) == len(adapter.layers), "checkpoints are checked against the base"
        num_experts = None
        if self._device.type == "cpu":
            (num_experts,) = {weights.n for weights in adapter.layers.values()}
        return _Entry(adapter.num_bytes, modules, num_experts)

    def is_ready(self, digest: str) -> bool:
        entry = self._entries.get(digest)
        return entry is not None and entry.adapter is not None

    def reserve(self, digest: str) -> bool:
        """Sets host memory aside for an adapter that is not ready, at the cost of unpinned ones.

        False, and no change, when the pinned ones leave too little.
        """
        entry = self._entries[digest]
        assert entry.adapter is None
        if entry.reserved:
            return True
        used, leaving = self.host_bytes_used, []
        for other, candidate in self._entries.items():
            if used + entry.num_bytes <= self.host_bytes:
                break
            if candidate.adapter is not None and self._is_unpinned(other):
                leaving.append(other)
                used -= candidate.num_bytes
        if used + entry.num_bytes > self.host_bytes:
            return False
        for other in leaving:
            self._drop(other)
        entry.reserved = True
        self.host_bytes_used += entry.num_bytes
        return True

    def fill(self, adapter: HostAdapter) -> None:
        """Keeps a copy that memory was set aside for; without that it is dropped."""
        entry = self._entries.get(adapter.digest)
        if entry is not None and entry.reserved:
            assert adapter.num_bytes == entry.num_bytes, "one digest, one size"
            entry.adapter, entry.reserved = adapter, False
            self.host_count += 1

    def cancel(self, digest: str) -> None:
        """Gives back the memory that was set aside for a copy which does not come."""
        entry = self._entries.get(digest)
        if entry is not None and entry.reserved:
            entry.reserved = False
            self.host_bytes_used -= entry.num_bytes

    def pin(self, digest: str) -> None:
        """Keeps a ready adapter ready until `unpin`."""
        assert self.is_ready(digest)
        self._entries[digest].pins += 1

    def unpin(self, digest: str) -> None:
        assert self._entries[digest].pins > 0, "unpinned more often than pinned"
        self._entries[digest].pins -= 1
        self._touch(digest)

    def remove(self, digest: str) -> None:
        """Forgets an adapter that nothing pins; an unknown digest is a no-op."""
        if digest in self._entries:
            assert self._is_unpinned(digest), "a pinned adapter must not be removed"
            self.cancel(digest)
            self._drop(digest)
            del self._entries[digest]

    # -- device slots ---------------------------------------------------------------------------

    def is_resident(self, digest: str) -> bool:
        return digest in self._slots

    @property
    def residents(self) -> tuple[str, ...]:
        return self._slots.residents

    def fits(self, digests: Collection[str], without: Collection[str]) -> bool:
        """Whether there would be slots and device memory for `digests` if those of `without` were
        gone."""
        return self._slots.fits([self._entries[d].num_bytes for d in digests], without)

    def pin_slot(self, digest: str, keep: Collection[str] = ()) -> int | None:
        """Pins a ready adapter on the device and returns its slot.

        None, and no change, when neither a free slot nor memory can be had now because what is
        there is pinned or in `keep`. What the device raises leaves the slot empty.
        """
        if digest not in self._slots:
            entry = self._entries[digest]
            assert entry.adapter is not None, "only what is in host memory gets a slot"
            placement = self._slots.place(digest, entry.num_bytes, keep)
            if placement is None:
                return None
            started = time.monotonic()
            if entry.counts_Ln is None and entry.num_experts is not None:
                shape = len(entry.modules), entry.num_experts
                entry.counts_Ln = torch.zeros(shape, dtype=torch.int64)
            for other, slot in placement.evicted.items():
                self._clear(other, slot)
            try:
                for i, name in enumerate(entry.modules):
                    weights = entry.adapter.layers[name].to(self._device)
                    if entry.counts_Ln is not None:
                        weights = weights.counting(entry.counts_Ln[i])
                    self._tables[name].set(placement.slot, weights)
            except BaseException:
                self._clear(digest, self._slots.vacate(digest))
                raise
            self.slot_fills += 1
            self.slot_fill_seconds += time.monotonic() - started
        return self._slots.pin(digest)

    def unpin_slot(self, digest: str) -> None:
        self._slots.unpin(digest)
        self._touch(digest)

    def _is_unpinned(self, digest: str) -> bool:
        return not self._entries[digest].pins and not self._slots.pins(digest)

    def _touch(self, digest: str) -> None:
        # The last to leave. In one step: others ask for counts meanwhile.
        self._entries.move_to_end(digest)

    def _clear(self, digest: str, slot: int) -> None:
        adapter = self._entries[digest].adapter
        assert adapter is not None
        for name in adapter.layers:
            self._tables[name].clear(slot)

    def _drop(self, digest: str) -> None:
        """Frees the host copy of an unpinned adapter, and its slot: on the CPU they are one."""
        entry = self._entries[digest]
        if digest in self._slots:
            self._clear(digest, self._slots.vacate(digest))
        if entry.adapter is not None:
            entry.adapter = None
            self.host_count -= 1
            self.host_bytes_used -= entry.num_bytes
