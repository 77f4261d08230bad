"""How the traffic of served adapters uses their experts, as Prometheus series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from remix_runtime.adapter.load import Routing, RoutingFlag
from remix_runtime.contracts import Engine

_LABELS = ("tenant", "adapter")


def routing_series(
    served: Sequence[tuple[str, str, str]], latest: Mapping[str, Routing], *, of: str = "adapter"
) -> Iterator[Metric]:
    """`served`: tenant, name and digest; `latest`: what is known by digest; `of`: a word of the
    series' names, for what has those tenants' names. An adapter has no series before there are
    enough tokens to judge by, and none when it is no longer served."""
    judged = [
        ((tenant, name), latest[digest])
        for tenant, name, digest in served
        if digest in latest and latest[digest].enough
    ]
    for metric, text, field in (
        (
            "routing_entropy",
            "Entropy of the load of experts over log n, mean of the modules; 1 is even, "
            "log k / log n is the least.",
            "entropy",
        ),
        (
            "effective_experts",
            "exp(entropy), mean of the modules: from k to n.",
            "effective_experts",
        ),
        (
            "dead_experts",
            "Experts that recent traffic hardly uses, over all modules.",
            "dead_experts",
        ),
        (
            "routing_drift",
            "Jensen-Shannon divergence of the load from the training data in bits, mean of the "
            "modules, less what chance shows.",
            "drift",
        ),
    ):
        gauge = GaugeMetricFamily(f"remix_{of}_{metric}", text, labels=_LABELS)
        for labels, routing in judged:
            if (value := getattr(routing, field)) is not None:
                gauge.add_metric(labels, float(value))
        yield gauge
    flags = GaugeMetricFamily(
        f"remix_{of}_routing_flag",
        f"1 while the {of}'s routing has drifted or collapsed.",
        labels=(*_LABELS, "flag"),
    )
    for labels, routing in judged:
        for flag in RoutingFlag:
            flags.add_metric((*labels, flag), float(flag in routing.flags))
    yield flags


def expert_series(engine: Engine, digests: Iterable[str], max_series: int) -> Iterator[Metric]:
    """The load of experts by digest, which `remix_adapter_info` gives names: every expert over all
    modules, and how uneven each module is. If there are too many, the last digests have no
    series, and the engine is not asked for theirs."""
    total = CounterMetricFamily(
        "remix_expert_activations",
        "How often tokens activated an expert, over all modules; with vLLM in a sample of steps.",
        labels=("digest", "expert"),
    )
    busiest = GaugeMetricFamily(
        "remix_expert_busiest_share",
        "The busiest expert's share of a module's activations; 1/n is even.",
        labels=("digest", "module"),
    )
    series = 0
    for digest in digests:
        modules = engine.expert_load(digest)
        totals = [sum(column) for column in zip(*modules.values(), strict=True)]
        series += len(totals) + len(modules)
        if series > max_series:
            break
        for expert, count in enumerate(totals):
            total.add_metric((digest, str(expert)), float(count))
        for module, counts in modules.items():
            if sum(counts):
                busiest.add_metric((digest, module), max(counts) / sum(counts))
    yield from (total, busiest)
