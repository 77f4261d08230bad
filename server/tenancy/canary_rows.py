"""What a canary is: an adapter that gets a share of the requests for a name of a tenant's set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.tenancy.errors import InvalidValueError
from server.tenancy.tables import canaries, rows_of

MAX_BAKE_REQUESTS = 10**9
MAX_SECONDS = 366 * 86400.0
MAX_RATIO = 1000.0


class Outcome(StrEnum):
    """How a canary ended."""

    PROMOTED = "promoted"
    """Its adapter has the name now."""
    ROLLED_BACK = "rolled_back"
    """By the servers, or by hand: the adapter that had the name keeps it."""
    SUPERSEDED = "superseded"
    """A change of the set gave the name another adapter, or took it away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRules:
    """When a canary is rolled back, and when it is promoted."""

    max_extra_errors: float = 0.02
    """The share of its requests that may fail beyond the share of the live adapter's that do."""
    max_first_token_ratio: float = 1.5
    max_token_ratio: float = 1.5
    """How many times as long as with the live adapter the first token, and each later one, may
    take: in the median, and in the slowest twentieth."""
    max_first_token_seconds: float | None = None
    max_token_seconds: float | None = None
    """Bounds of the medians, whatever the live adapter takes."""
    bake_seconds: float = 600.0
    bake_requests: int = 200
    """It is promoted after so long and so many requests within the bounds."""
    give_up_seconds: float = 86400.0
    """It is rolled back when it has come to no end after so long."""

    def __post_init__(self) -> None:
        _check("max_extra_errors", self.max_extra_errors, 0.0, 1.0)
        for name in ("max_first_token_ratio", "max_token_ratio"):
            _check(name, getattr(self, name), 1.0, MAX_RATIO)
        for name in ("max_first_token_seconds", "max_token_seconds"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), 1e-6, MAX_SECONDS)
        _check("bake_seconds", self.bake_seconds, 0.0, MAX_SECONDS)
        _check("bake_requests", self.bake_requests, 1, MAX_BAKE_REQUESTS)
        _check("give_up_seconds", self.give_up_seconds, self.bake_seconds, MAX_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    tenant: str
    name: str
    id: str
    """One canary of a name from the next."""
    digest: str
    share: float
    """Of the requests for the name."""
    rules: CanaryRules
    created: datetime
    actor: str
    ended: datetime | None = None
    outcome: Outcome | None = None
    """None while it runs."""
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What the servers had seen when it ended."""

    def __post_init__(self) -> None:
        check_share(self.share)


def check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise InvalidValueError("share", share, "a number above 0, at most 1")


def newest(tenant: str | None = None) -> Select[Any]:
    """The query for the newest canary of each name, of one tenant or of all."""
    query = select(canaries).order_by(canaries.c.name)
    return query if tenant is None else query.where(canaries.c.tenant == tenant)


async def running(connection: AsyncConnection) -> dict[str, dict[str, Canary]]:
    """The canaries that run, by tenant and name."""
    found: dict[str, dict[str, Canary]] = {}
    async for row in rows_of(connection, newest().where(canaries.c.ended.is_(None))):
        found.setdefault(row.tenant, {})[row.name] = canary_of(row)
    return found


def canary_of(row: Row[Any]) -> Canary:
    values = {column.name: getattr(row, column.name) for column in fields(Canary)}
    outcome = None if row.outcome is None else Outcome(row.outcome)
    return Canary(**{**values, "rules": CanaryRules(**row.rules), "outcome": outcome})


def _check(name: str, value: float, least: float, most: float) -> None:
    if not math.isfinite(value) or not least <= value <= most:
        raise InvalidValueError(name, value, f"a number from {least:g} to {most:g}")
