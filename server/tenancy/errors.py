"""What can go wrong with tenants and their sets, as one tree, with its HTTP status.

TenancyError
├── InvalidValueError         400  a name, digest, limit or text is malformed (`field`)
├── NotFoundError             404  what the call names is not there
│   ├── UnknownTenantError
│   ├── UnknownKeyError
│   ├── UnknownRevisionError
│   ├── UnknownCanaryError
│   └── AdapterNotFoundError
├── ConflictError             409  the state forbids it
│   ├── TenantExistsError
│   ├── CanaryError                the set, or another canary, forbids this one
│   └── ReferencedError            an adapter is in use (`tenants`)
├── StaleRevisionError        412  compare-and-set lost (`found`, `expected`)
├── UnknownAdapterError       422  a set names digests that are not registered (`adapters`)
├── DatabaseUnavailableError  503  down, locked or too slow; try again (`retry_after`)
└── LeaseLostError                 no request's: this server has renewed its leases too late
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from remix_runtime.errors import RemixError


class TenancyError(RemixError):
    """Root of this room's errors."""


class InvalidValueError(TenancyError):
    """A value is malformed. `field` names it."""

    def __init__(self, field: str, found: object, expected: str) -> None:
        super().__init__(f"{field}: found {str(found)[:100]!r}, expected {expected}")
        self.field = field


class NotFoundError(TenancyError):
    """What the call names does not exist."""


class UnknownTenantError(NotFoundError):
    def __init__(self, tenant: str) -> None:
        super().__init__(f"there is no tenant {tenant[:100]!r}")
        self.tenant = tenant


class UnknownKeyError(NotFoundError):
    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no API key with the id {key_id[:100]!r}")
        self.key_id = key_id


class UnknownRevisionError(NotFoundError):
    def __init__(self, tenant: str, revision: int) -> None:
        super().__init__(f"tenant {tenant!r} has no set revision {revision}")
        self.tenant = tenant
        self.revision = revision


class UnknownCanaryError(NotFoundError):
    def __init__(self, name: str) -> None:
        super().__init__(f"there is no such canary of {name[:100]!r}")


class AdapterNotFoundError(NotFoundError):
    def __init__(self, digest: str) -> None:
        super().__init__(f"no adapter with the digest {digest[:100]!r} is registered")
        self.digest = digest


class ConflictError(TenancyError):
    """The present state forbids the change."""


class TenantExistsError(ConflictError):
    def __init__(self, tenant: str) -> None:
        super().__init__(f"there is a tenant {tenant!r} already")
        self.tenant = tenant


class CanaryError(ConflictError):
    """The set, or a canary that runs, forbids this canary."""


class ReferencedError(ConflictError):
    """The newest set, or a canary that runs, of each of `tenants` names the adapter."""

    def __init__(self, digest: str, tenants: Sequence[str]) -> None:
        some = ", ".join(tenants[:5]) + (", …" if len(tenants) > 5 else "")
        super().__init__(
            f"adapter {digest} is in the live set or a canary of {some}; take it out first"
        )
        self.digest = digest
        self.tenants = tuple(tenants)


class StaleRevisionError(TenancyError):
    """The set has moved on since the revision that the caller expected."""

    def __init__(self, tenant: str, *, found: int, expected: int) -> None:
        super().__init__(
            f"the set of tenant {tenant!r}: found revision {found}, expected {expected}"
        )
        self.tenant = tenant
        self.found = found
        self.expected = expected


class UnknownAdapterError(TenancyError):
    """A set names adapters that nobody imported. `adapters`: those names and digests."""

    def __init__(self, adapters: Mapping[str, str]) -> None:
        some = ", ".join(f"{name}={digest}" for name, digest in list(adapters.items())[:5])
        more = ", …" if len(adapters) > 5 else ""
        super().__init__(f"not registered: {some}{more}; import these adapters first")
        self.adapters = dict(adapters)


class DatabaseUnavailableError(TenancyError):
    """The database cannot answer now. Whether a write took effect, or will, is not known: the same
    write again, once it succeeds, makes sure. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LeaseLostError(TenancyError):
    """A server has come too late to renew what it held of quotas."""

    def __init__(self, server: str) -> None:
        super().__init__(f"the database has not seen the server {server} in time")
