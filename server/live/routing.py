"""Watches how the traffic of each adapter uses its experts: over a window of recent tokens, beside
the load that training wrote. A watched task looks every few seconds, never a request.

The window holds about the last `WINDOW` times the tokens that are needed to judge by, older ones
counting less and less. So what begins today is seen, whatever went before, and as many tokens stand
behind each verdict on a busy adapter as on a quiet one.

Shape suffixes: L adapted linears, n experts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from remix_runtime.adapter.load import Routing, RoutingFlag, judge, tokens_needed
from remix_runtime.contracts import AdapterInfo, Engine
from remix_runtime.turn import Turn
from remix_runtime.watch import Watch, Watched
from server.live.adapters import LiveAdapters

log = logging.getLogger(__name__)

ROUTING_TASK = "routing"
"""Name of the watched task."""
LOOK_SECONDS = 5.0
"""Seconds between two looks."""
WINDOW = 2
"""Times `tokens_needed`."""
QUIET_SECONDS = 60.0
"""Seconds after its last use that an adapter is still looked at: vLLM's workers tell their counts
later than their tokens."""
_DUE_SECONDS = 60.0


class Window:
    """The activations of one adapter's recent tokens, from counts that only grow."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._modules: tuple[str, ...] = ()
        self._counts_Ln: NDArray[np.float64] = np.zeros((0, 0))
        self._recent_Ln = self._counts_Ln

    def add(self, load: Mapping[str, Sequence[int]]) -> bool:
        """Takes in the counts of this moment, of all tokens so far. Returns whether there are new
        ones. Counts below earlier ones are those of an adapter that was loaded again."""
        if not load:
            return False
        modules = tuple(load)
        counts_Ln = np.array(list(load.values()), dtype=np.float64)
        if modules != self._modules:
            self._arrange(modules, counts_Ln.shape[1])
        new_Ln = counts_Ln - self._counts_Ln
        if (new_Ln < 0).any():
            new_Ln = counts_Ln
        self._counts_Ln = counts_Ln
        if not new_Ln.any():
            return False
        self._recent_Ln = self._recent_Ln + new_Ln
        tokens = float(self._recent_Ln.sum(1).max()) / self._k
        most = WINDOW * tokens_needed(counts_Ln.shape[1], self._k)
        if tokens > most:
            self._recent_Ln *= most / tokens
        return True

    @property
    def load(self) -> dict[str, list[float]]:
        """Activations by module; those of forgotten tokens count less."""
        return dict(zip(self._modules, self._recent_Ln.tolist(), strict=True))

    def _arrange(self, modules: tuple[str, ...], n: int) -> None:
        """Makes room for modules that were not told of before."""
        rows = {module: row for row, module in enumerate(self._modules)}
        for name in ("_counts_Ln", "_recent_Ln"):
            before_Ln, after_Ln = getattr(self, name), np.zeros((len(modules), n))
            for row, module in enumerate(modules):
                if module in rows:
                    after_Ln[row] = before_Ln[rows[module]]
            setattr(self, name, after_Ln)
        self._modules = modules


class RoutingMonitor:
    """Used on one event loop."""

    def __init__(self, engine: Engine, adapters: LiveAdapters) -> None:
        self._engine = engine
        self._adapters = adapters
        self._windows: dict[str, Window] = {}
        self._latest: dict[str, Routing] = {}
        self._used: dict[str, float] = {}
        """When an adapter was last in use, on the monotonic clock."""
        self._watched: Watched | None = None

    def start(self, watch: Watch) -> None:
        self._watched = watch.start(
            ROUTING_TASK,
            self._look_for_ever,
            what="watching the load of experts",
            due_seconds=_DUE_SECONDS,
        )

    async def stop(self) -> None:
        if self._watched is not None:
            await self._watched.stop()

    @property
    def latest(self) -> Mapping[str, Routing]:
        """By digest, as of the last look; adapters without traffic since their load are missing."""
        return self._latest

    def now(self, digest: str) -> Routing:
        """As of this moment; nothing for an adapter that the engine does not hold."""
        info = self._adapters.info(digest)
        if info is None:
            return judge({}, k=1)
        self._look_at(digest, info)
        if digest in self._latest:
            return self._latest[digest]
        return judge(self._engine.expert_load(digest), k=info.top_k, trained=info.trained_load)

    async def look(self) -> None:
        """Looks at what was used lately, and forgets adapters that are gone."""
        now = monotonic()
        for digest in self._adapters.take_used():
            self._used[digest] = now
        turn = Turn()
        for digest, used in list(self._used.items()):
            info = self._adapters.info(digest)
            if info is not None and self._look_at(digest, info):
                self._used[digest] = now
            elif now - used > QUIET_SECONDS:  # sooner, and one that is still being loaded is missed
                del self._used[digest]
            await turn.end_if_long()
        for digest in [d for d in self._windows if self._adapters.info(d) is None]:
            del self._windows[digest]
            self._latest.pop(digest, None)

    def _look_at(self, digest: str, info: AdapterInfo) -> bool:
        """Judges anew where there are new tokens, and returns whether there are."""
        window = self._windows.setdefault(digest, Window(info.top_k))
        if not window.add(self._engine.expert_load(digest)):
            return False
        before = self._latest.get(digest)
        found = judge(window.load, k=info.top_k, trained=info.trained_load)
        self._latest[digest] = found
        _tell(digest, found, () if before is None else before.flags)
        return True

    async def _look_for_ever(self, task: Watched) -> None:
        while True:
            await self.look()
            await task.rest(LOOK_SECONDS)


def _tell(digest: str, found: Routing, before: Sequence[RoutingFlag]) -> None:
    for flag in found.flags:
        if flag not in before:
            drift = "" if found.drift is None else f", drift {found.drift:.3f}"
            log.warning(
                "the routing of adapter %s has %s: %.1f effective experts%s, over %d tokens",
                digest,
                flag,
                found.effective_experts,
                drift,
                found.tokens,
            )
    for flag in before:
        if flag not in found.flags:
            log.info("the routing of adapter %s is no longer %s", digest, flag)
