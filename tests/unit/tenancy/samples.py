"""Adapters that exist by their digests only, and what must hold of any directory."""

from __future__ import annotations

import hashlib

from server.tenancy import Directory
from server.tenancy.records import AdapterRecord

EVERYTHING = 1_000_000


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def record(name: str) -> AdapterRecord:
    return AdapterRecord(
        digest=digest(name), source=f"file:///adapters/{name}", num_bytes=len(name)
    )


async def with_tenant(directory: Directory, *adapters: str, tenant: str = "acme") -> str:
    await directory.create_tenant(tenant, actor="test")
    for name in adapters:
        await directory.add_adapter(record(name), actor="test")
    return tenant


async def check_history(directory: Directory, tenant: str) -> int:
    """Revisions without gaps, an audit row for each of them; the newest one's number."""
    revisions = await directory.revisions(tenant, limit=EVERYTHING)
    count = len(revisions)
    assert [item.revision for item in revisions] == list(range(count, 0, -1))
    rows = await directory.audit(tenant=tenant, limit=EVERYTHING)
    told = [row.detail for row in rows if row.action in ("set.put", "set.rollback")]
    assert [(row["revision"], row["adapters"]) for row in told] == [
        (item.revision, item.adapters) for item in revisions
    ]
    assert (await directory.current_set(tenant)).revision == count
    return count


async def live_digests(directory: Directory) -> set[str]:
    """What some tenant's newest set names."""
    live = await directory.current_sets()
    return {digest for item in live.values() for digest in item.adapters.values()}
