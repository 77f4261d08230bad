"""Prometheus metrics of requests and of the engine.

Label values are tenants and names of their sets, never what a client sent, and at most
`MAX_SERIES` pairs of them; what comes after those is counted as `other`. A pair that no set has had
for `FORGET_SECONDS` is forgotten, and makes room for others. A server without tenants
has the empty tenant, which is no label at all to Prometheus.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from time import monotonic
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from remix_runtime.contracts import Engine, TokenEvent
from server.live.canary.series import MAX_CANARIES
from server.live.routing import RoutingMonitor
from server.live.sets import LiveSets
from server.routing_series import expert_series, routing_series
from server.vllm_series import InFlight, vllm_series

OTHER = "other"
"""Stands for a name that is not one of a set's, or that has no series of its own."""
MAX_SERIES = 2000
"""The most pairs of tenant and adapter that have series of their own."""

FORGET_SECONDS = 3600.0
"""Seconds that the series of a pair stay after it was in a live set: long enough to be scraped."""
_SWEEP_SECONDS = 60.0
"""Seconds between two looks for such pairs."""

_SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LONG = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


S = TypeVar("S", Counter, Histogram)
_SeriesKey = tuple[Counter | Histogram, tuple[str, ...]]
"""The metric, and the labels that come after those of the pair."""


class Metrics:
    """All series of one server, in a registry of its own."""

    def __init__(
        self,
        registry: CollectorRegistry,
        engine: Engine,
        sets: LiveSets,
        routing: RoutingMonitor,
        *,
        max_series: int,
    ) -> None:
        self._registry = registry
        self._sets = sets
        self._max_series = max_series
        self._seen: dict[tuple[str, str], dict[_SeriesKey, Counter | Histogram]] = {}
        """Pairs that have series of their own, and which."""
        self._left: dict[tuple[str, str], float] = {}
        """When a pair was first found in no live set, on the monotonic clock."""
        self._swept = -_SWEEP_SECONDS

        def counter(name: str, text: str, *labels: str) -> Counter:
            labels = ("tenant", "adapter", *labels)
            return Counter(f"remix_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(
                f"remix_{name}_seconds",
                text,
                ("tenant", "adapter"),
                buckets=tuple(buckets),
                registry=registry,
            )

        self._requests = counter(
            "requests_total", "HTTP requests by outcome.", "endpoint", "status"
        )
        self._errors = counter("request_errors_total", "Failed requests.", "type")
        self._prompt_tokens = counter("prompt_tokens_total", "Tokens in.")
        self._cached_tokens = counter(
            "cached_prompt_tokens_total", "Tokens in that the prefix cache had."
        )
        self._generated = counter("generated_tokens_total", "Tokens out.")
        self._queue = histogram("queue_time", "Arrival to first scheduled step.", _LONG)
        self._first = histogram("time_to_first_token", "Arrival to first token.", _LONG)
        self._between = histogram("inter_token_latency", "Between two tokens.", _SHORT)
        self._duration = histogram("request_duration", "Whole request.", _LONG)
        self._in_flight = InFlight()
        self._collector = _EngineCollector(engine, sets, routing, self._in_flight, max_series)
        registry.register(self._collector)
        self._writing: asyncio.Future[bytes] | None = None

    async def text(self) -> bytes:
        """All series in Prometheus' text format. Many of them take seconds, in a thread; who asks
        meanwhile gets the same text."""
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())
            self._writing.add_done_callback(self._written)
        return await asyncio.shield(self._writing)

    def _written(self, _: asyncio.Future[bytes]) -> None:
        self._writing = None

    async def _write(self) -> bytes:
        self._forget()
        self._begin_all()
        # The loop's own: nothing of it changes while it is read.
        self._collector.read()
        return await asyncio.to_thread(generate_latest, self._registry)

    def _begin_all(self) -> None:
        """Makes the series of all sets, as far as there is room: rates start from a known zero."""
        for tenant, live in self._sets.all.items():
            for name in (self._sets.base_name, *live.adapters):
                if len(self._seen) >= self._max_series:
                    return
                self._labels(tenant, name)

    def watch(self, tenant: str, name: str, *, prompt_tokens: int) -> SequenceWatch:
        """Makes the observer of one sequence that is handed to the engine now.

        `prompt_tokens` are counted with its first event: a refused request read none.
        """
        labels = self._labels(tenant, name)
        return SequenceWatch(
            self._series(self._prompt_tokens, labels),
            prompt_tokens,
            self._series(self._cached_tokens, labels),
            self._series(self._queue, labels),
            self._series(self._first, labels),
            self._series(self._between, labels),
            self._series(self._generated, labels),
            self._in_flight,
            None if name == self._sets.base_name else name,
        )

    def count_request(
        self,
        *,
        tenant: str,
        name: str,
        endpoint: str,
        status: str,
        error: str | None,
        seconds: float,
    ) -> None:
        """`name` is one of the tenant's set, the base's, or `OTHER`."""
        labels = self._labels(tenant, name)
        self._series(self._requests, labels, endpoint, status).inc()
        self._series(self._duration, labels).observe(seconds)
        if error is not None:
            self._series(self._errors, labels, error).inc()

    def _labels(self, tenant: str, name: str) -> tuple[str, str]:
        pair = (tenant, name)
        if pair not in self._seen:
            if len(self._seen) >= self._max_series:
                self._forget()
            if len(self._seen) >= self._max_series:
                return (OTHER, OTHER)
            self._seen[pair] = {}
            self._series(self._prompt_tokens, pair)
            self._series(self._cached_tokens, pair)
            self._series(self._generated, pair)
        return pair

    def _series(self, metric: S, pair: tuple[str, str], *more: str) -> S:
        """One series of a metric; that of a pair that has its own goes with the pair."""
        series = self._seen.get(pair)
        if series is None:
            return metric.labels(*pair, *more)
        one: Any = series.get((metric, more))
        if one is None:  # the library's own look takes longer
            one = series[metric, more] = metric.labels(*pair, *more)
        return cast(S, one)

    def _forget(self) -> None:
        """Removes the series of pairs that left all live sets long ago. Those of `OTHER` names stay
        with their tenant."""
        now, live = monotonic(), self._sets.all
        if now - self._swept < _SWEEP_SECONDS:
            return
        self._swept = now
        for pair in list(self._seen):
            tenant, name = pair
            is_served = tenant in live and (
                name in (OTHER, self._sets.base_name) or name in live[tenant].adapters
            )
            if is_served or not tenant:
                self._left.pop(pair, None)
            elif now - self._left.setdefault(pair, now) >= FORGET_SECONDS:
                del self._left[pair]
                for metric, more in self._seen.pop(pair):
                    metric.remove(*pair, *more)


class SequenceWatch:
    """Times the events of one sequence."""

    def __init__(
        self,
        prompt: Counter,
        prompt_tokens: int,
        cached: Counter,
        queue: Histogram,
        first: Histogram,
        between: Histogram,
        generated: Counter,
        in_flight: InFlight,
        adapter: str | None,
    ) -> None:
        self._prompt, self._prompt_tokens = prompt, prompt_tokens
        self._cached = cached
        self._queue, self._first, self._between = queue, first, between
        self._generated = generated
        self._in_flight, self._adapter = in_flight, adapter
        self._start = monotonic()
        self._last: float | None = None
        self._runs = False
        self.queue_seconds: float | None = None
        """From arrival to the first scheduled step; None before it."""

    def begin(self) -> None:
        """The engine gets the sequence."""
        if self._adapter is not None:
            self._in_flight.enter(self._adapter)

    def end(self) -> None:
        """The engine has it no more."""
        if self._adapter is not None:
            self._in_flight.leave(self._adapter, ran=self._runs)

    def see(self, event: TokenEvent) -> None:
        if not self._runs and self._adapter is not None:
            self._in_flight.run(self._adapter)
        self._runs = True
        if self._prompt_tokens:
            self._prompt.inc(self._prompt_tokens)
            self._cached.inc(event.cached_tokens or 0)
            self._prompt_tokens = 0
        if event.queue_seconds is not None:
            self.queue_seconds = event.queue_seconds
            self._queue.observe(event.queue_seconds)
        tokens = len(event.token_ids)
        if tokens == 0:
            return
        self._generated.inc(tokens)
        now = monotonic()
        if self._last is None:
            self._first.observe(now - self._start)
        else:
            for _ in range(tokens):
                self._between.observe((now - self._last) / tokens)
        self._last = now


class _EngineCollector(Collector):
    """Gauges that are read from the engine and the live sets before every scrape."""

    def __init__(
        self,
        engine: Engine,
        sets: LiveSets,
        routing: RoutingMonitor,
        in_flight: InFlight,
        max_series: int,
    ) -> None:
        self._engine = engine
        self._sets = sets
        self._routing = routing
        self._in_flight = in_flight
        self._max_series = max_series
        self._read: list[Metric] = []

    def read(self) -> None:
        self._read = list(self._metrics())

    def collect(self) -> Iterable[Metric]:
        return self._read

    def _metrics(self) -> Iterator[Metric]:
        stats, health = self._engine.stats(), self._engine.health()
        for name, text, value in (
            ("requests_running", "Sequences that generate.", stats.running),
            ("requests_waiting", "Sequences in the queue.", stats.waiting),
            ("kv_used_tokens", "KV memory in use, in tokens.", stats.kv_tokens_used),
            ("kv_capacity_tokens", "KV memory, in tokens.", stats.kv_tokens_total),
            (
                "kv_cached_tokens",
                "KV memory that the prefix cache keeps until its room is needed, in tokens.",
                stats.kv_tokens_cached,
            ),
            ("adapter_slots_used", "Adapters on the device.", stats.adapter_slots_used),
            ("adapter_slots", "Places for adapters on the device.", stats.adapter_slots_total),
            ("adapters_loaded", "Adapters that requests may name.", stats.adapters_loaded),
            ("adapters_on_host", "Of those, in host memory.", stats.adapters_on_host),
            (
                "host_adapter_used_bytes",
                "Host memory of adapters in use.",
                stats.host_adapter_bytes_used,
            ),
            ("host_adapter_bytes", "Host memory for adapters.", stats.host_adapter_bytes_total),
            (
                "device_adapter_used_bytes",
                "Device memory of adapters in use.",
                stats.device_adapter_bytes_used,
            ),
            (
                "device_adapter_bytes",
                "Device memory for adapters.",
                stats.device_adapter_bytes_total,
            ),
            ("engine_alive", "1 while the engine makes progress.", health.alive),
            ("replicas", "Replicas that answer; 0 for an engine without any.", stats.replicas),
            ("replicas_wanted", "The fewest that should answer.", stats.replicas_wanted),
        ):
            yield GaugeMetricFamily(f"remix_{name}", text, value=float(value))
        for name, text, total in (
            ("spec_decode_draft_tokens", "Tokens guessed ahead.", stats.tokens_proposed),
            ("spec_decode_accepted_tokens", "Of those, that came next.", stats.tokens_accepted),
            ("adapter_reads", "Adapters read from disk again for requests.", stats.adapter_reads),
            ("adapter_read_seconds", "What those reads took.", stats.adapter_read_seconds),
            ("adapter_slot_fills", "Adapters put into a slot.", stats.adapter_slot_fills),
            ("adapter_slot_fill_seconds", "What that took.", stats.adapter_slot_fill_seconds),
            (
                "prefix_cache_queries",
                "Prompt tokens looked for in the prefix cache.",
                stats.prefix_cache_queries,
            ),
            ("prefix_cache_hits", "Those of them that were found.", stats.prefix_cache_hits),
            (
                "placed_requests",
                "Requests with adapters that came to a replica.",
                stats.placed_requests,
            ),
            (
                "placed_requests_found",
                "Those of them whose adapter the replica had.",
                stats.placed_requests_found,
            ),
            (
                "preemptions",
                "Running requests set back to the queue for want of KV memory.",
                stats.preemptions,
            ),
        ):
            yield CounterMetricFamily(f"remix_{name}", text, value=float(total))
        live_sets = self._sets.all
        num_served = sum(len(live.adapters) for live in live_sets.values())
        yield GaugeMetricFamily(
            "remix_served_adapters", "Names in all live sets.", value=float(num_served)
        )
        names = (
            (tenant, name, digest)
            for tenant, live in live_sets.items()
            for name, digest in live.adapters.items()
        )
        served = list(islice(names, self._max_series))
        info = GaugeMetricFamily(
            "remix_adapter_info",
            "Served adapters, always 1.",
            labels=("tenant", "adapter", "digest"),
        )
        for labels in served:
            info.add_metric(labels, 1.0)
        yield info
        yield from routing_series(served, self._routing.latest)
        # By names of their own: the live adapter of a name has the other series.
        canaries = [
            (record.tenant, record.name, record.digest)
            for record in (running.record for running in self._sets.canaries.all[:MAX_CANARIES])
        ]
        yield from routing_series(canaries, self._routing.latest, of="canary")
        yield from vllm_series(stats, self._in_flight, model=self._sets.base_name)
        digests = dict.fromkeys(digest for *_, digest in served)
        yield from expert_series(self._engine, digests, self._max_series)

    def describe(self) -> Iterable[Metric]:
        return ()
