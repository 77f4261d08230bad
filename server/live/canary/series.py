"""Prometheus series of the canaries that run, by arm. They are gone with their canary, so that
there are never more of them than canaries."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.live.canary.running import RunningCanaries

MAX_CANARIES = 200
"""The most canaries with series of their own."""


class CanarySeries(Collector):
    """What this server has seen of its canaries."""

    def __init__(self, canaries: RunningCanaries) -> None:
        self._canaries = canaries

    def collect(self) -> Iterable[Metric]:
        labels = ("tenant", "adapter", "arm")
        requests = CounterMetricFamily(
            "remix_canary_requests", "Requests for a name that has a canary, by arm.", labels=labels
        )
        failures = CounterMetricFamily(
            "remix_canary_failures", "Of those, that failed by the arm's fault.", labels=labels
        )
        first = GaugeMetricFamily(
            "remix_canary_first_token_seconds", "The median time to the first token.", labels=labels
        )
        token = GaugeMetricFamily(
            "remix_canary_token_seconds", "The median time of a later token.", labels=labels
        )
        share = GaugeMetricFamily(
            "remix_canary_share", "The share of requests that a canary gets.", labels=labels[:2]
        )
        for canary in islice(self._canaries.all, MAX_CANARIES):
            name = (canary.record.tenant, canary.record.name)
            share.add_metric(name, canary.record.share)
            for arm, figures in canary.seen.arms():
                place = (*name, str(arm))
                requests.add_metric(place, figures.requests)
                failures.add_metric(place, figures.failures)
                for family, times in ((first, figures.first), (token, figures.token)):
                    if (median := times.quantile(0.5)) is not None:
                        family.add_metric(place, median)
        yield from (requests, failures, first, token, share)

    def describe(self) -> Iterable[Metric]:
        return ()
