"""What a server knows of its replicas from what they last said, summed over all. Pure Python."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import fields, replace

from remix_runtime.engine_state import EngineStats
from remix_runtime.engines.ray.messages import Load, Report, summed_loads
from remix_runtime.engines.ray.placement import Placement

SILENCE_SECONDS = 30.0
"""Seconds after which a replica that says nothing counts no more."""

_OWN = frozenset(
    {
        "running",
        "waiting",
        "adapters_loaded",
        "adapter_reads",
        "adapter_read_seconds",
        "replicas_wanted",
    }
)
"""What the server counts itself: its own part, where others share the replicas."""


class Fleet:
    """The last word of each replica."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._reports: dict[str, tuple[float, Report]] = {}
        """By replica, with the time on the monotonic clock."""
        self._loads: dict[str, dict[str, Load]] = defaultdict(dict)
        """Of experts, by adapter and replica; what a replica counted stays when it goes."""
        self.num_found = self.num_placed = 0
        """Requests with adapters that found theirs at their replica, and all of them."""

    def take(self, report: Report) -> None:
        self._reports[report.replica] = time.monotonic(), report
        self._placement.set_adapters(report.replica, report.adapters)

    def count(self, digest: str, *, found: bool) -> None:
        """Counts a request with this adapter that came to a replica."""
        self.num_placed += 1
        self.num_found += found

    def take_load(self, replica: str, digest: str, load: Load) -> None:
        self._loads[digest][replica] = load

    def forget(self, digest: str) -> None:
        self._loads.pop(digest, None)
        self._placement.forget(digest)

    @property
    def heard(self) -> list[Report]:
        """Of the replicas that run and have said something lately."""
        now, running = time.monotonic(), self._placement.replicas
        self._reports = {name: said for name, said in self._reports.items() if name in running}
        return [report for at, report in self._reports.values() if now - at < SILENCE_SECONDS]

    def expert_load(self, digest: str) -> Load:
        return summed_loads(self._loads.get(digest, {}).values())

    def stats(self, own: EngineStats) -> EngineStats:
        """Of all replicas together, with the server's own counts."""
        heard = self.heard
        sums = {
            field.name: sum(getattr(report.stats, field.name) for report in heard)
            for field in fields(EngineStats)
            if field.name not in _OWN
        }
        return replace(
            own,
            **sums
            | {
                "replicas": len(heard),
                "placed_requests": self.num_placed,
                "placed_requests_found": self.num_found,
            },
        )
