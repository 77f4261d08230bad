"""Pure statistics of how tokens use the experts of an adapter: how evenly, how many experts, which
none, and how far from the training data.

Every token activates k of n experts in every adapted linear, so an expert's share of a module's
activations is at most 1/k, and the entropy of the shares lies between log k and log n: never 0. The
effective number of experts, exp(entropy), lies between k and n.

Shape suffixes: L adapted linears, n experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MIN_TOKENS = 2000
MIN_ACTIVATIONS = 100.0
"""Fewer tokens than `MIN_TOKENS`, or so few that an expert would not get this many activations at
an even load, are no sample to judge by."""
DEAD_SHARE = 0.01
"""An expert with less than this part of an even share is dead."""
DRIFT = 0.1
COLLAPSE = 0.5
BARE_COLLAPSE = 0.1


class RoutingFlag(StrEnum):
    DRIFTED = "drifted"
    """Traffic uses other experts than the training data did."""
    COLLAPSED = "collapsed"
    """Traffic uses far fewer experts than the training data did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRouting:
    """One adapted linear. What is None cannot be told from so few tokens, or without a training
    load."""

    module: str
    activations: tuple[int, ...]
    trained: tuple[float, ...] | None
    """Shares in the training data."""
    entropy: float | None
    """Of the shares, over log n: from log k / log n to 1."""
    effective_experts: float | None
    dead_experts: tuple[int, ...]
    drift: float | None
    """Jensen-Shannon divergence from the training data in bits, 0 to 1, without what a sample of
    this size shows by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """An adapter: means over its adapted linears."""

    tokens: int
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
