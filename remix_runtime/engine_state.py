"""What an engine says of itself: for metrics, probes and operators."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of gauges; cheap to take at any moment from any thread."""

    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    kv_tokens_cached: int = 0
    """Tokens that no request holds and that the prefix cache keeps until their room is needed."""
    prefix_cache_queries: int = 0
    """Prompt tokens that were looked for in the prefix cache, since the start."""
    prefix_cache_hits: int = 0
    """Those of them that were found."""
    preemptions: int = 0
    """How often a running request was set back to the queue for want of KV pages."""
    tokens_proposed: int = 0
    """Tokens that were guessed and computed ahead, since the start."""
    tokens_accepted: int = 0
    """Those of them that were what comes next."""
    adapter_slots_used: int = 0
    adapter_slots_total: int = 0
    adapter_slot_fills: int = 0
    """How often an adapter was put into a slot (host to device), since the start."""
    adapter_slot_fill_seconds: float = 0.0
    """Seconds that those fills took."""
    adapters_loaded: int = 0
    adapters_on_host: int = 0
    """How many of the loaded adapters are in host memory, those in slots included."""
    adapter_reads: int = 0
    """How often an adapter was read (disk to host) for its load or for a request, since the
    start."""
    adapter_read_seconds: float = 0.0
    """Seconds that those reads took, validation and layout included."""
    device_adapter_bytes_used: int = 0
    device_adapter_bytes_total: int = 0
    host_adapter_bytes_used: int = 0
    host_adapter_bytes_total: int = 0
    replicas: int = 0
    """Replicas that answer, of an engine that has some."""
    replicas_wanted: int = 0
    """The fewest that should."""
    placed_requests: int = 0
    """Requests with adapters that came to a replica, since the start."""
    placed_requests_found: int = 0
    """Those of them whose adapter the replica had."""


class AdapterTier(StrEnum):
    """Where the nearest copy of an adapter is."""

    DISK = "disk"
    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterState:
    """A loaded adapter at this moment, for operators."""

    digest: str
    tier: AdapterTier
    slot: int | None
    """Its slot; None off the device."""
    requests: int
    """Running and waiting requests."""
    idle_seconds: float | None
    """Since its last request ended; 0 while it has some, None before the first."""
    read_seconds: float
    """Seconds that the last read from disk took, validation and layout included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`alive` comes from progress: false once a step has been due and has not come for too long,
    or when the step loop has ended. `ready` is also false before start-up and while draining."""

    alive: bool
    ready: bool
    reason: str = ""
    failing: tuple[str, ...] = ()
    """Tasks of the engine that do not work, and that requests can do without."""
