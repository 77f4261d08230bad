"""The series by which routers that know LoRAs choose a server, under vLLM's names: llm-d and the
Gateway API's inference extension, AIBrix, vLLM's production stack.

`vllm:lora_requests_info` has names of adapters in its labels, as vLLM has them: those with requests
at this moment, whichever tenant's they are. They are what the `model` of such a request says.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from remix_runtime.engine_state import EngineStats

MAX_NAMES = 128
"""The most adapters in a list: of more the first ones of the alphabet."""


class InFlight:
    """How many sequences of each adapter wait for their first token, and how many have it."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._running: Counter[str] = Counter()

    def enter(self, name: str) -> None:
        self._waiting[name] += 1

    def run(self, name: str) -> None:
        _leave(self._waiting, name)
        self._running[name] += 1

    def leave(self, name: str, *, ran: bool) -> None:
        _leave(self._running if ran else self._waiting, name)

    @property
    def waiting(self) -> str:
        """Names with commas between them."""
        return _joined(self._waiting)

    @property
    def running(self) -> str:
        return _joined(self._running)


def vllm_series(stats: EngineStats, in_flight: InFlight, *, model: str) -> Iterator[Metric]:
    """vLLM's series of an engine whose base is `model`."""
    used = stats.kv_tokens_used / stats.kv_tokens_total if stats.kv_tokens_total else 0.0
    labels, values = ("model_name", "engine"), (model, "0")
    for name, text, value in (
        ("num_requests_running", "Sequences that generate.", stats.running),
        ("num_requests_waiting", "Sequences in the queue.", stats.waiting),
        ("kv_cache_usage_perc", "KV memory in use, 0 to 1.", used),
        ("gpu_cache_usage_perc", "The same under its older name.", used),
    ):
        gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=labels)
        gauge.add_metric(values, float(value))
        yield gauge
    for name, text, total in (
        (
            "prefix_cache_queries",
            "Prompt tokens looked for in the prefix cache.",
            stats.prefix_cache_queries,
        ),
        ("prefix_cache_hits", "Those of them that were found.", stats.prefix_cache_hits),
    ):
        for prefix in ("", "gpu_"):  # the older name too
            counter = CounterMetricFamily(f"vllm:{prefix}{name}", text, labels=labels)
            counter.add_metric(values, float(total))
            yield counter
    lora = GaugeMetricFamily(
        "vllm:lora_requests_info",
        "Adapters with requests; the value is the time, in Unix seconds.",
        labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
    )
    slots = str(stats.adapter_slots_total)
    lora.add_metric((slots, in_flight.waiting, in_flight.running), time.time())
    yield lora


def _leave(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


def _joined(counts: Counter[str]) -> str:
    return ",".join(sorted(counts)[:MAX_NAMES])
