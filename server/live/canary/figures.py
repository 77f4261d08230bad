"""What was seen of a canary and of the live adapter beside it.

Times are counted in buckets, each an eighth of a doubling wide, so that figures of several servers,
and of one before and after a restart, add up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

_FIRST_SECONDS = 0.0005
"""The upper end of the first bucket."""
_PER_DOUBLING = 8
_BUCKETS = 24 * _PER_DOUBLING
"""The last one begins at more than two hours."""


class Arm(StrEnum):
    """Whose request it is."""

    CANARY = "canary"
    LIVE = "live"
    """The live adapter's, while there is a canary."""


class Times:
    """A histogram of seconds."""

    def __init__(self, buckets: Mapping[int, int] | None = None) -> None:
        self._buckets: Counter[int] = Counter(buckets or {})

    def add(self, seconds: float) -> None:
        self._buckets[_bucket(seconds)] += 1

    @property
    def count(self) -> int:
        return self._buckets.total()

    def quantile(self, share: float) -> float | None:
        """The seconds within which this share is, to a sixteenth of a doubling; None where there
        are none."""
        wanted, seen = share * self.count, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return _middle(bucket)
        return None

    def above(self, seconds: float) -> int:
        """How many took longer, as far as their buckets tell it for sure."""
        return sum(count for bucket, count in self._buckets.items() if _begin(bucket) >= seconds)

    def __add__(self, other: Times) -> Times:
        return Times(self._buckets + other._buckets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Times) and self._buckets == other._buckets

    __hash__ = None  # type: ignore[assignment]

    def as_json(self) -> list[list[int]]:
        return [[bucket, self._buckets[bucket]] for bucket in sorted(self._buckets)]


@dataclass(slots=True)
class ArmFigures:
    """What was seen of one arm."""

    requests: int = 0
    failures: int = 0
    first: Times = field(default_factory=Times)
    """From a request's arrival to its first token."""
    token: Times = field(default_factory=Times)
    """The mean of a request's later tokens."""

    def __add__(self, other: ArmFigures) -> ArmFigures:
        return ArmFigures(
            self.requests + other.requests,
            self.failures + other.failures,
            self.first + other.first,
            self.token + other.token,
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "failures": self.failures,
            "first": self.first.as_json(),
            "token": self.token.as_json(),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        first, token = (Times(dict(found[name])) for name in ("first", "token"))
        return cls(found["requests"], found["failures"], first, token)


@dataclass(slots=True)
class Figures:
    """What was seen of both arms."""

    canary: ArmFigures = field(default_factory=ArmFigures)
    live: ArmFigures = field(default_factory=ArmFigures)

    def of(self, arm: Arm) -> ArmFigures:
        return self.canary if arm is Arm.CANARY else self.live

    def __add__(self, other: Figures) -> Figures:
        return Figures(self.canary + other.canary, self.live + other.live)

    def arms(self) -> Iterator[tuple[Arm, ArmFigures]]:
        yield Arm.CANARY, self.canary
        yield Arm.LIVE, self.live

    @property
    def is_empty(self) -> bool:
        return not any(seen.requests or seen.first.count for _, seen in self.arms())

    def as_json(self) -> dict[str, Any]:
        """All of it, for reports."""
        return {str(arm): figures.as_json() for arm, figures in self.arms()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        return cls(*(ArmFigures.from_json(found[str(arm)]) for arm in (Arm.CANARY, Arm.LIVE)))

    def summary(self) -> dict[str, Any]:
        """What people want to know of it: seconds are the median and the slowest twentieth's."""
        return {str(arm): _summary(figures) for arm, figures in self.arms()}


def _summary(figures: ArmFigures) -> dict[str, Any]:
    summary: dict[str, Any] = {"requests": figures.requests, "failures": figures.failures}
    for name, times in (("first_token", figures.first), ("token", figures.token)):
        for which, share in (("median", 0.5), ("p95", 0.95)):
            found = times.quantile(share)
            summary[f"{name}_{which}_seconds"] = None if found is None else round(found, 6)
    return summary


def _bucket(seconds: float) -> int:
    if seconds <= _FIRST_SECONDS:
        return 0
    return min(math.ceil(_PER_DOUBLING * math.log2(seconds / _FIRST_SECONDS)), _BUCKETS)


def _begin(bucket: int) -> float:
    return 0.0 if not bucket else _FIRST_SECONDS * 2 ** ((bucket - 1) / _PER_DOUBLING)


def _middle(bucket: int) -> float:
    return _FIRST_SECONDS * 2 ** ((bucket - 0.5) / _PER_DOUBLING)
