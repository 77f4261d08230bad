"""Pure statistics of how tokens use the experts of an adapter: how evenly, how many of them, which
ones never, and how far from the training data.

Every token activates k of n experts in every adapted linear, so an expert's share of a module's
activations is at most 1/k, and the entropy of the shares lies between log k and log n: it is never
0. The effective number of experts, exp(entropy), lies between k and n.

`docs/decisions/0026-routing-is-judged-over-a-window.md` has the experiments behind the thresholds.

Shape suffixes: L adapted linears, n experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from remix_runtime.contracts import TrainedLoad

MIN_TOKENS = 1000
MIN_ACTIVATIONS = 100
"""Fewer than `MIN_TOKENS` tokens, or so few that at an even load an expert would not be activated
`MIN_ACTIVATIONS` times, are no sample to judge by."""
DEAD_SHARE = 0.01
"""An expert with less than this part of an even share is dead."""
DRIFT = 0.01
"""Bits of divergence from which traffic has drifted."""
COLLAPSE = 0.5
"""Of the effective experts beyond k that training data had, traffic that has not even this part has
collapsed."""
BARE_COLLAPSE = 0.1
"""So has an adapter with less than this part of the n − k that there could be, whatever training
data had."""
ALIKE = 4.0
"""Tokens of one text are alike: so many show as much chance as one independent token would."""

_Array = NDArray[np.float64]


class RoutingFlag(StrEnum):
    DRIFTED = "drifted"
    """Traffic uses other experts than the training data did."""
    COLLAPSED = "collapsed"
    """Traffic uses hardly more than k experts, or far fewer than the training data did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRouting:
    """How one adapted linear spreads its tokens over the experts. None: too few tokens to tell, or
    no load of the training data. As it stands, an answer of the admin API."""

    module: str
    activations: tuple[int, ...]
    """How often each expert was activated in the window; with vLLM in a sample of the steps."""
    trained: tuple[float, ...] | None
    """Shares of the experts in the training data."""
    entropy: float | None
    """Of the shares, over log n: from log k / log n to 1."""
    effective_experts: float | None
    """exp(entropy): from k to n."""
    dead_experts: tuple[int, ...]
    """Experts with less than a hundredth of an even share."""
    drift: float | None
    """Jensen-Shannon divergence from the training data in bits, 0 to 1, less what a sample of this
    size shows by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How recent traffic uses an adapter's experts; figures are means over its modules. An adapter
    that always activates all its experts has nothing to judge. As it stands, an answer of the admin
    API."""

    tokens: int
    """In the module that has seen the fewest."""
    enough: bool
    """Whether there are enough tokens to judge by."""
    entropy: float | None
    effective_experts: float | None
    dead_experts: int
    """Over all modules."""
    drift: float | None
    flags: tuple[RoutingFlag, ...]
    modules: tuple[ModuleRouting, ...]


def tokens_needed(n: int, k: int) -> int:
    """How many tokens are a sample to judge k of n experts by."""
    return max(MIN_TOKENS, math.ceil(MIN_ACTIVATIONS * n / k))


def judge(
    load: Mapping[str, Sequence[float]], *, k: int, trained: TrainedLoad | None = None
) -> Routing:
    """Judges how often n experts were activated in each module by tokens that activate k of them;
    `trained` is what training wrote of the same adapter. Modules without activations are left out.
    Where every token activates all experts there is nothing to judge."""
    shares = {} if trained is None else _shares_by_module(trained)
    seen = {module: counts for module, counts in load.items() if sum(counts) > 0}
    counts_Ln = np.array(list(seen.values()), dtype=np.float64)
    tokens, n = (round(counts_Ln.sum(1).min() / k), counts_Ln.shape[1]) if seen else (0, 0)
    figures = None
    if n > k and tokens >= tokens_needed(n, k):
        trained_Ln = None
        if trained is not None and seen.keys() <= shares.keys():
            trained_Ln = np.array([shares[module] for module in seen])
        samples = (tokens,) if trained is None else (tokens, trained.tokens)
        figures = _Figures(counts_Ln, trained_Ln, k=k, samples=samples)
    rows = {} if figures is None else {module: row for row, module in enumerate(seen)}
    return Routing(
        tokens=tokens,
        enough=figures is not None,
        entropy=None if figures is None else figures.entropy,
        effective_experts=None if figures is None else figures.effective,
        dead_experts=0 if figures is None else int(figures.dead_Ln.sum()),
        drift=None if figures is None else figures.drift,
        flags=() if figures is None else figures.flags,
        modules=tuple(
            _module(module, counts, shares.get(module), figures, rows.get(module))
            for module, counts in load.items()
        ),
    )


class _Figures:
    """Of enough activations `counts_Ln` of k experts a token, beside the shares of the training
    data. `samples`: how many tokens stand behind each of the two."""

    def __init__(
        self, counts_Ln: _Array, trained_Ln: _Array | None, *, k: int, samples: Sequence[int]
    ) -> None:
        n = counts_Ln.shape[1]
        shares_Ln = counts_Ln / counts_Ln.sum(1, keepdims=True)
        entropy_L = _entropy(shares_Ln)
        self.entropy_L = np.minimum(entropy_L / math.log(n), 1.0)
        self.effective_L = np.exp(entropy_L)
        self.dead_Ln = shares_Ln < DEAD_SHARE / n
        self.entropy, self.effective = float(self.entropy_L.mean()), float(self.effective_L.mean())
        self.drift_L: _Array | None = None
        self.drift: float | None = None
        floor = BARE_COLLAPSE * (n - k)
        if trained_Ln is not None:
            difference_L = divergence(shares_Ln, trained_Ln) - chance_divergence(n, k, samples)
            self.drift_L = np.maximum(difference_L, 0.0)
            self.drift = max(float(difference_L.mean()), 0.0)
            trained = float(np.exp(_entropy(trained_Ln)).mean())
            floor = max(floor, COLLAPSE * (trained - k))
        flags = []
        if self.drift is not None and self.drift >= DRIFT:
            flags.append(RoutingFlag.DRIFTED)
        if self.effective - k < floor:
            flags.append(RoutingFlag.COLLAPSED)
        self.flags = tuple(flags)


def divergence(p_Ln: _Array, q_Ln: _Array) -> _Array:
    """Jensen-Shannon divergence in bits of the shares of each module: 0 for equal ones, 1 for
    shares that have no expert in common. Returns [L]."""
    mixed_L = _entropy((p_Ln + q_Ln) / 2)
    nats_L = mixed_L - (_entropy(p_Ln) + _entropy(q_Ln)) / 2
    return np.clip(nats_L / math.log(2), 0.0, 1.0)


def chance_divergence(n: int, k: int, samples: Sequence[int]) -> float:
    """What `divergence` is expected to be between samples of the same traffic, of so many tokens.

    To second order it is Σ (p − q)² / (8 m ln 2), m the mean of both. The share of an expert that a
    token activates with probability π has variance π (1 − π) / (k² N) over N independent tokens,
    and Σ π = k, which gives (n − k) / (8 k ln 2) · Σ 1/N, with `ALIKE` tokens for one.
    """
    return ALIKE * (n - k) / (8 * k * math.log(2)) * sum(1 / tokens for tokens in samples)


def _module(
    module: str,
    counts: Sequence[float],
    trained_n: _Array | None,
    figures: _Figures | None,
    row: int | None,
) -> ModuleRouting:
    activations = tuple(round(count) for count in counts)
    trained = None if trained_n is None else tuple(trained_n.tolist())
    if figures is None or row is None:
        return ModuleRouting(
            module=module,
            activations=activations,
            trained=trained,
            entropy=None,
            effective_experts=None,
            dead_experts=(),
            drift=None,
        )
    drift_L = figures.drift_L
    return ModuleRouting(
        module=module,
        activations=activations,
        trained=trained,
        entropy=float(figures.entropy_L[row]),
        effective_experts=float(figures.effective_L[row]),
        dead_experts=tuple(np.flatnonzero(figures.dead_Ln[row]).tolist()),
        drift=None if drift_L is None else float(drift_L[row]),
    )


def _entropy(p_Ln: _Array) -> _Array:
    """In nats, [L]; 0 log 0 is 0."""
    result: _Array = -(p_Ln * np.log(np.where(p_Ln > 0, p_Ln, 1.0))).sum(1)
    return result


def _shares_by_module(trained: TrainedLoad) -> dict[str, _Array]:
    arrays = {name: np.array(c, dtype=np.float64) for name, c in trained.modules.items()}
    return {name: counts_n / counts_n.sum() for name, counts_n in arrays.items()}
