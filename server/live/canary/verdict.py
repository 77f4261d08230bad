"""What follows from the figures of a canary: it goes on, is promoted, or is rolled back.

It is looked at again and again, so a test with a fixed number of requests would find something by
chance sooner or later. Instead each bound is a bet against "the canary is within it": at a bound of
p, a request that is bad multiplies the stake by q/p and a good one by (1-q)/(1-p), for some q above
p. Were the canary within the bound, the stake would exceed S at any time with a probability of at
most 1/S (Ville's inequality); so a stake of `STAKE` is proof. A mean over several q finds small and
large excesses early. Bounds that follow from the live adapter are estimates; what that does to the
rate of false rollbacks is simulated (tests/unit/live/canary/test_verdict.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from server.live.canary.figures import Figures, Times
from server.tenancy.canary_rows import CanaryRules

STAKE = 5000.0
"""The stake at which a bound counts as left."""
_EXCESSES = tuple(2.0**-i for i in range(8))
"""The q of the bets, as shares of the way from p to 1."""
_LEAST_RATE, _MOST_RATE = 1e-6, 0.999

_ERROR_REFERENCE = 20
"""Live requests below which its error rate counts as if there were so many."""
_FIRST_FLOOR_SECONDS, _TOKEN_FLOOR_SECONDS = 0.02, 0.005
"""Differences that are no news, whatever the ratio."""


@dataclass(frozen=True, slots=True)
class _Quantile:
    share: float
    """Of the live adapter's times, whose quantile is the bound's measure."""
    may_exceed: float
    """The share of the canary's times that may be above the bound."""
    needs: int
    """Live times, for the quantile to be known."""
    what: str


_QUANTILES = (
    _Quantile(0.5, 0.5, 20, "half of them"),
    # A canary that is as fast exceeds 1.5 times the 95th percentile by less than a twentieth.
    _Quantile(0.95, 0.1, 100, "a tenth of them"),
)


class Verdict(Enum):
    GO_ON = auto()
    PROMOTE = auto()
    ROLL_BACK = auto()


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    reason: str
    """A clause; of one that goes on, what it waits for."""


@dataclass(frozen=True, slots=True)
class _Bound:
    """At most `rate` of `total` may be bad."""

    bad: int
    total: int
    rate: float
    left: str
    """What it means that the bound is left."""

    @property
    def is_left(self) -> bool:
        return log_stake(self.bad, self.total, self.rate) >= math.log(STAKE)

    @property
    def is_kept(self) -> bool:
        """By what was seen, proof or not."""
        return not self.total or self.bad <= self.rate * self.total


def judge(rules: CanaryRules, figures: Figures, *, share: float, age_seconds: float) -> Judgement:
    """The verdict on a canary that has been running for `age_seconds`."""
    bounds = list(_bounds(rules, figures))
    for bound in bounds:
        if bound.is_left:
            return Judgement(Verdict.ROLL_BACK, bound.left)
    waits = _waits_for(rules, figures, bounds, share=share, age_seconds=age_seconds)
    if waits is None:
        reason = f"{figures.canary.requests} requests within the bounds"
        return Judgement(Verdict.PROMOTE, reason)
    if age_seconds >= rules.give_up_seconds:
        reason = f"no decision after {rules.give_up_seconds:g} s: {waits}"
        return Judgement(Verdict.ROLL_BACK, reason)
    return Judgement(Verdict.GO_ON, waits)


def log_stake(bad: int, total: int, rate: float) -> float:
    """The logarithm of the mean of what a stake of 1 became, of bets that more than `rate` are bad;
    minus infinity where nothing can be bet."""
    rate = max(rate, _LEAST_RATE)
    if rate >= _MOST_RATE:
        return -math.inf
    stakes = []
    for excess in _EXCESSES:
        q = min(rate + (1 - rate) * excess, _MOST_RATE)
        won = bad * math.log(q / rate)
        lost = (total - bad) * math.log((1 - q) / (1 - rate)) if total > bad else 0.0
        stakes.append(won + lost)
    most = max(stakes)
    return most + math.log(sum(math.exp(each - most) for each in stakes) / len(stakes))


def _bounds(rules: CanaryRules, figures: Figures) -> Iterator[_Bound]:
    canary, live = figures.canary, figures.live
    usual = live.failures / max(live.requests, _ERROR_REFERENCE)
    yield _Bound(
        canary.failures,
        canary.requests,
        usual + rules.max_extra_errors,
        f"{canary.failures} of {canary.requests} requests failed, {live.failures} of "
        f"{live.requests} of the live adapter's; up to {rules.max_extra_errors:.2%} more may",
    )
    yield from _time_bounds(
        "first token",
        canary.first,
        live.first,
        rules.max_first_token_ratio,
        rules.max_first_token_seconds,
        _FIRST_FLOOR_SECONDS,
    )
    yield from _time_bounds(
        "time per token",
        canary.token,
        live.token,
        rules.max_token_ratio,
        rules.max_token_seconds,
        _TOKEN_FLOOR_SECONDS,
    )


def _time_bounds(
    what: str, canary: Times, live: Times, ratio: float, most: float | None, floor: float
) -> Iterator[_Bound]:
    for quantile in _QUANTILES:
        limits = []
        usual = live.quantile(quantile.share)
        if usual is not None and live.count >= quantile.needs:
            limits.append(max(ratio * usual, usual + floor))
        if most is not None and quantile.share == 0.5:
            limits.append(most)
        if limits:
            bad = canary.above(limit := min(limits))
            yield _Bound(
                bad,
                canary.count,
                quantile.may_exceed,
                f"{what}: {bad} of {canary.count} requests took longer than {limit:.4g} s, as "
                f"at most {quantile.what} may",
            )


def _waits_for(
    rules: CanaryRules, figures: Figures, bounds: list[_Bound], *, share: float, age_seconds: float
) -> str | None:
    """What keeps a canary from being promoted."""
    canary, live = figures.canary, figures.live
    if canary.requests < rules.bake_requests:
        return f"{canary.requests} of {rules.bake_requests} requests"
    if age_seconds < rules.bake_seconds:
        return f"{age_seconds:.0f} of {rules.bake_seconds:g} s"
    needs = _QUANTILES[0].needs
    for what, here, there in (
        ("first", canary.first, live.first),
        ("next", canary.token, live.token),
    ):
        # With all of the requests there is nothing to compare with.
        if share < 1 and here.count and there.count < needs:
            return f"{there.count} of {needs} {what} tokens of the live adapter to compare with"
    for bound in bounds:
        if not bound.is_kept:
            return f"outside the bounds, though it may be chance: {bound.left}"
    return None
