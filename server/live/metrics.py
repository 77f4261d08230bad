"""Prometheus metrics of swaps and loads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.tenancy.canary_rows import Outcome

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300)

OUTCOMES = ("applied", "unchanged", "stale", "refused", "failed")
"""Outcomes of a swap: it is live now; it was live already; it lost the race (412); it was bad (422,
404); the server failed."""
AUTOMATIC, BY_HAND = "automatic", "by_hand"
"""Whose decision ended a canary: the servers', by what they have seen, or a person's."""


class LiveMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"remix_{name}_seconds", text, buckets=_SECONDS, registry=registry)

        self.swaps = Counter(
            "remix_set_swaps_total",
            "Changes of adapter sets asked of this process, by outcome.",
            ("outcome",),
            registry=registry,
        )
        for outcome in OUTCOMES:  # so that rates start from a known zero
            self.swaps.labels(outcome)
        self.followed = Counter(
            "remix_sets_followed_total",
            "Sets made live because the directory had them, not by a swap of this process.",
            registry=registry,
        )
        self.swap = histogram("set_swap", "A swap from the request to live.")
        self.loads = histogram(
            "adapter_load", "Disk to servable: reading, checking and replaying an adapter."
        )
        self.cold_wait = histogram("cold_start_wait", "What requests waited for such a load.")
        self.repairs = Counter(
            "remix_adapter_repairs_total",
            "Adapters whose folder in the store was damaged or gone, by outcome of the import.",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("repaired", "failed"):
            self.repairs.labels(outcome)
        self.unavailable = Gauge(
            "remix_adapters_unavailable",
            "Adapters in use here that cannot be loaded or read again, so that requests get a 503.",
            registry=registry,
        )
        self.canaries = Counter(
            "remix_canaries_ended_total",
            "Canaries that this server ended, by outcome and by whose decision.",
            ("outcome", "decision"),
            registry=registry,
        )
        self.canaries.labels(Outcome.PROMOTED, AUTOMATIC)
        for decision in (AUTOMATIC, BY_HAND):
            self.canaries.labels(Outcome.ROLLED_BACK, decision)
        self.behind = Gauge(
            "remix_sets_behind",
            "Tenants whose newest set is not live on this server yet.",
            registry=registry,
        )
        self.directory_age = Gauge(
            "remix_directory_age_seconds",
            "Since the database last confirmed this server's copy; it grows while it cannot.",
            registry=registry,
        )
        self.quota_servers = Gauge(
            "remix_quota_servers",
            "Servers that share quotas on one PostgreSQL; 0 while this one cannot reach it, or "
            "where quotas are this server's own.",
            registry=registry,
        )
        self.failing = Gauge(
            "remix_tasks_failing",
            "Kinds of long-lived tasks that do not work, as /ready names them.",
            registry=registry,
        )
