"""Limits of each tenant: requests and tokens per minute, requests at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from remix_runtime.errors import RemixError
from server.tenancy.records import Quota


class RateLimitedError(RemixError):
    """Over a limit of the tenant."""

    retry_after = 1.0
    headers: Mapping[str, str] = {}


class Admission:
    headers: Mapping[str, str] = {}

    def reserve_tokens(self, tokens: int) -> None:
        pass

    def settle(self, used: int) -> None:
        pass


class Quotas:
    @contextmanager
    def admit(self, tenant: str, quota: Quota) -> Iterator[Admission]:
        yield Admission()
