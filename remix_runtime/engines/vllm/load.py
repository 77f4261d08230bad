"""Counts how the work is spread over the experts of each adapter, as vLLM's workers report it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import zip_longest

Counts = Mapping[str, tuple[int, ...]]
"""Module to how often each expert was activated."""


class ExpertLoad:
    """Sums by digest. A mapping that was given out is replaced and never changed, so any thread may
    read it."""

    def __init__(self) -> None:
        self.totals: Mapping[str, Counts] = {}

    def forget(self, digest: str) -> None:
        self.totals = {other: counts for other, counts in self.totals.items() if other != digest}

    def add(
        self,
        parts: Iterable[Mapping[int, Mapping[str, list[int]]]],
        digests: Mapping[int, str],
        known: Collection[str],
    ) -> None:
        """Adds `parts`: what each worker counted since it was last asked, by LoRA id and module.
        Ranks of tensor parallelism report the same, stages of a pipeline other modules. Sums of
        digests that are not in `known` are dropped."""
        new: dict[str, dict[str, list[int]]] = {}
        for part in parts:
            for number, modules in part.items():
                if number in digests:  # else it was dropped since
                    new.setdefault(digests[number], {}).update(modules)
        totals = {digest: counts for digest, counts in self.totals.items() if digest in known}
        for digest, modules in new.items():
            counts = dict(totals.get(digest, {}))
            for module, more in modules.items():
                pairs = zip_longest(counts.get(module, ()), more, fillvalue=0)
                counts[module] = tuple(a + b for a, b in pairs)
            totals[digest] = counts
        self.totals = totals
