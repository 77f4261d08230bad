"""Finds out who a request comes from: a bearer key becomes a tenant, or is refused."""

from __future__ import annotations

import asyncio
import hmac
from typing import Protocol

from server.live.follower import Follower
from server.tenancy.directory import Directory
from server.tenancy.errors import DatabaseUnavailableError
from server.tenancy.records import Quota

SINGLE_USER = ""
"""The tenant of a server without tenants."""

_UNLIMITED = Quota(may_use_base=True)
_UNKNOWN_KEYS_AT_ONCE = 4
_LOOK_UP_SECONDS = 3.0


def is_key(given: str | None, key: str) -> bool:
    """Compares keys, in the same time wherever they differ. `given` is header text, which is
    latin-1."""
    return hmac.compare_digest((given or "").encode("latin-1"), key.encode())


class Access(Protocol):
    async def tenant_of(self, key: str | None) -> str | None:
        """The tenant that a request with this bearer key (None: without one) comes from; None
        refuses it. Raises `DatabaseUnavailableError` where that cannot be known."""
        ...

    def quota(self, tenant: str) -> Quota:
        """What the tenant may use at this moment."""
        ...

    @property
    def knows_keys(self) -> bool:
        """Whether good keys are accepted at this moment."""
        ...


class SingleUserAccess:
    """One key for the whole server, or none."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key

    async def tenant_of(self, key: str | None) -> str | None:
        if self._api_key is None or is_key(key, self._api_key):
            return SINGLE_USER
        return None

    def quota(self, tenant: str) -> Quota:
        return _UNLIMITED

    @property
    def knows_keys(self) -> bool:
        return True


class TenantAccess:
    """Knows the keys of the directory from this process's copy of it.

    Without the database, keys of the copy are good for `grace_seconds` more; for other keys it is
    not known whether they exist.
    """

    def __init__(self, directory: Directory, follower: Follower, *, grace_seconds: float) -> None:
        self._directory = directory
        self._follower = follower
        self._grace_seconds = grace_seconds
        # Guesses must not take the database's connections from everybody else.
        self._look_ups = asyncio.Semaphore(_UNKNOWN_KEYS_AT_ONCE)

    async def tenant_of(self, key: str | None) -> str | None:
        if key is None:
            return None
        tenant = self._follower.snapshot.authenticate(key)
        if tenant is None:
            return await self._look_up(key)
        if not self.knows_keys:
            raise DatabaseUnavailableError(
                f"no key could be confirmed for {self._grace_seconds:g} s"
            )
        return tenant

    def quota(self, tenant: str) -> Quota:
        state = self._follower.snapshot.tenants.get(tenant)
        # Deleted since its key was seen.
        return Quota() if state is None else state.quota

    @property
    def knows_keys(self) -> bool:
        return self._follower.age_seconds <= self._grace_seconds

    async def _look_up(self, key: str) -> str | None:
        """Asks the database, for a key that another process made a moment ago."""
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS), self._look_ups:
                tenant = await self._directory.authenticate(key)
                if tenant is not None:
                    await self._follower.refresh()
                return tenant
        except TimeoutError:
            raise DatabaseUnavailableError("the database is too slow to confirm the key") from None
