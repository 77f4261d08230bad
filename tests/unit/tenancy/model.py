"""The directory as plain dictionaries, without a database, time or lost answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.tenancy.errors import (
    AdapterNotFoundError,
    ReferencedError,
    StaleRevisionError,
    TenantExistsError,
    UnknownAdapterError,
    UnknownKeyError,
    UnknownRevisionError,
    UnknownTenantError,
)
from server.tenancy.records import AdapterRecord, Quota

Adapters = Mapping[str, str]


@dataclass
class Model:
    """The changing methods of `Directory`, by their names."""

    quotas: dict[str, Quota] = field(default_factory=dict)
    """Of every tenant that there is."""
    sets: defaultdict[str, dict[int, Adapters]] = field(default_factory=lambda: defaultdict(dict))
    """Of deleted tenants too."""
    keys: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Key id to its tenant and whether it is revoked."""
    adapters: set[str] = field(default_factory=set)
    audit: list[tuple[str, str | None]] = field(default_factory=list)
    """Actions and their tenants, oldest first."""

    def revision(self, tenant: str) -> int:
        return max(self.sets[tenant], default=0)

    def live(self, tenant: str) -> Adapters:
        return self.sets[tenant].get(self.revision(tenant), {})

    def create_tenant(self, tenant: str) -> None:
        if tenant in self.quotas:
            raise TenantExistsError(tenant)
        self.quotas[tenant] = Quota()
        self.audit.append(("tenant.create", tenant))

    def delete_tenant(self, tenant: str) -> None:
        self._require(tenant)
        del self.quotas[tenant]
        self.keys = {key: item for key, item in self.keys.items() if item[0] != tenant}
        if revision := self.revision(tenant):
            self.sets[tenant] = {revision + 1: {}}
        self.audit.append(("tenant.delete", tenant))

    def create_key(self, tenant: str, key_id: str) -> None:
        self._require(tenant)
        self.keys[key_id] = (tenant, False)
        self.audit.append(("key.create", tenant))

    def revoke_key(self, key_id: str) -> None:
        if key_id not in self.keys:
            raise UnknownKeyError(key_id)
        tenant, revoked = self.keys[key_id]
        if not revoked:
            self.keys[key_id] = (tenant, True)
            self.audit.append(("key.revoke", tenant))

    def set_quota(self, tenant: str, quota: Quota) -> None:
        self._require(tenant)
        if self.quotas[tenant] != quota:
            self.quotas[tenant] = quota
            self.audit.append(("quota.set", tenant))

    def add_adapter(self, adapter: AdapterRecord) -> None:
        if adapter.digest not in self.adapters:
            self.adapters.add(adapter.digest)
            self.audit.append(("adapter.add", None))

    def delete_adapter(self, digest: str) -> None:
        if digest not in self.adapters:
            raise AdapterNotFoundError(digest)
        users = [tenant for tenant in self.quotas if digest in self.live(tenant).values()]
        if users:
            raise ReferencedError(digest, users)
        self.adapters.remove(digest)
        self.audit.append(("adapter.delete", None))

    def put_set(self, tenant: str, adapters: Adapters, *, expected: int | None) -> None:
        self._require(tenant)
        self._replace(tenant, adapters, expected, "set.put")

    def rollback_set(self, tenant: str, to: int, *, expected: int | None) -> None:
        self._require(tenant)
        if to != 0 and to not in self.sets[tenant]:
            raise UnknownRevisionError(tenant, to)
        self._replace(tenant, self.sets[tenant].get(to, {}), expected, "set.rollback")

    def _require(self, tenant: str) -> None:
        if tenant not in self.quotas:
            raise UnknownTenantError(tenant)

    def _replace(self, tenant: str, adapters: Adapters, expected: int | None, action: str) -> None:
        if self.live(tenant) == adapters:
            return
        found = self.revision(tenant)
        if expected not in (None, found):
            raise StaleRevisionError(tenant, found=found, expected=expected or 0)
        unknown = {name: item for name, item in adapters.items() if item not in self.adapters}
        if unknown:
            raise UnknownAdapterError(unknown)
        self.sets[tenant][found + 1] = adapters
        self.audit.append((action, tenant))
