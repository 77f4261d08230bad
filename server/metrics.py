"""Prometheus metrics. Label values come from fixed sets: no client can add a series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remix_runtime.contracts import Engine, TokenEvent
from server.state import open_labels

ENDPOINTS = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}
DISCONNECTED = "disconnected"

_SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LONG = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


class Metrics:
    """All series of one server, in a registry of its own."""

    def __init__(self, engine: Engine, base_name: str, adapters: dict[str, str]) -> None:
        """`adapters` maps names to digests."""
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"remix_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(
                f"remix_{name}_seconds",
                text,
                ("adapter",),
                buckets=tuple(buckets),
                registry=self.registry,
            )

        self._requests = counter(
            "requests_total", "HTTP requests by outcome.", "adapter", "endpoint", "status"
        )
        self._errors = counter("request_errors_total", "Failed requests.", "adapter", "type")
        self._prompt_tokens = counter("prompt_tokens_total", "Tokens in.", "adapter")
        self._generated = counter("generated_tokens_total", "Tokens out.", "adapter")
        self._queue = histogram("queue_time", "Arrival to first scheduled step.", _LONG)
        self._first = histogram("time_to_first_token", "Arrival to first token.", _LONG)
        self._between = histogram("inter_token_latency", "Between two tokens.", _SHORT)
        self._duration = histogram("request_duration", "Whole request.", _LONG)
        for name in (base_name, *adapters):  # so that rates start from a known zero
            self._prompt_tokens.labels(name)
            self._generated.labels(name)
        self.registry.register(_EngineCollector(engine, adapters))

    def watch(self, adapter: str, *, prompt_tokens: int) -> SequenceWatch:
        """An observer for one sequence that is handed to the engine now.

        `prompt_tokens` are counted with its first event: a refused request read none.
        """
        return SequenceWatch(
            self._prompt_tokens.labels(adapter),
            prompt_tokens,
            self._queue.labels(adapter),
            self._first.labels(adapter),
            self._between.labels(adapter),
            self._generated.labels(adapter),
        )

    def count_request(
        self, *, adapter: str, endpoint: str, status: str, error: str | None, seconds: float
    ) -> None:
        """`adapter` is a served name or `OTHER`: see `RequestLabels`."""
        self._requests.labels(adapter, endpoint, status).inc()
        self._duration.labels(adapter).observe(seconds)
        if error is not None:
            self._errors.labels(adapter, error).inc()


class SequenceWatch:
    """Times the events of one sequence."""

    def __init__(
        self,
        prompt: Counter,
        prompt_tokens: int,
        queue: Histogram,
        first: Histogram,
        between: Histogram,
        generated: Counter,
    ) -> None:
        self._prompt, self._prompt_tokens = prompt, prompt_tokens
        self._queue, self._first, self._between = queue, first, between
        self._generated = generated
        self._start = monotonic()
        self._last: float | None = None

    def see(self, event: TokenEvent) -> None:
        self._prompt.inc(self._prompt_tokens)
        self._prompt_tokens = 0
        if event.queue_seconds is not None:
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
    """Gauges that are read from the engine at every scrape."""

    def __init__(self, engine: Engine, adapters: dict[str, str]) -> None:
        self._engine = engine
        self._adapters = adapters

    def collect(self) -> Iterator[Metric]:
        stats, health = self._engine.stats(), self._engine.health()
        for name, text, value in (
            ("requests_running", "Sequences that generate.", stats.running),
            ("requests_waiting", "Sequences in the queue.", stats.waiting),
            ("kv_used_tokens", "KV memory in use, in tokens.", stats.kv_tokens_used),
            ("kv_capacity_tokens", "KV memory, in tokens.", stats.kv_tokens_total),
            ("adapter_slots_used", "Adapters on the device.", stats.adapter_slots_used),
            ("adapter_slots", "Places for adapters on the device.", stats.adapter_slots_total),
            ("engine_alive", "1 while the engine makes progress.", health.alive),
        ):
            yield GaugeMetricFamily(f"remix_{name}", text, value=float(value))
        info = GaugeMetricFamily(
            "remix_adapter_info", "Served adapters, always 1.", labels=("adapter", "digest")
        )
        for name, digest in self._adapters.items():
            info.add_metric((name, digest), 1.0)
        yield info

    def describe(self) -> Iterable[Metric]:
        return ()


class MetricsMiddleware:
    """Counts every request of the generating endpoints, whatever its end is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = ENDPOINTS.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        labels = open_labels(scope)
        status = DISCONNECTED
        start = monotonic()

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(HTTPStatus(message["status"]).value)
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            metrics: Metrics = scope["app"].state.services.metrics
            metrics.count_request(
                adapter=labels.adapter,
                endpoint=endpoint,
                status=status,
                error=labels.error,
                seconds=monotonic() - start,
            )
