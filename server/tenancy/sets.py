"""The rows of adapter sets: reading the newest revisions, appending another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.tenancy.errors import UnknownAdapterError, UnknownRevisionError, UnknownTenantError
from server.tenancy.records import SetRevision, now
from server.tenancy.tables import adapters, find, set_revisions, tenants


async def require_tenant(connection: AsyncConnection, tenant: str) -> Row[Any]:
    row = await find(connection, tenants.c.id, tenant)
    if row is None or row.deleted is not None:
        raise UnknownTenantError(tenant)
    return row


async def newest(connection: AsyncConnection, tenant: str) -> SetRevision:
    """Raises `UnknownTenantError`."""
    owner = await require_tenant(connection, tenant)
    found = await history(connection, tenant, limit=1)
    return found[0] if found else _before_first(owner)


async def newest_of_all(connection: AsyncConnection) -> dict[str, SetRevision]:
    """By tenant, in the order of their ids."""
    table = set_revisions
    last = select(table.c.tenant, func.max(table.c.revision).label("revision"))
    last_of = last.group_by(table.c.tenant).subquery()
    query = select(table).join(
        last_of,
        (table.c.tenant == last_of.c.tenant) & (table.c.revision == last_of.c.revision),
    )
    found = {row.tenant: _revision(row) for row in await connection.execute(query)}
    owners = await connection.execute(select(tenants).where(tenants.c.deleted.is_(None)))
    # Sorted here: databases differ in how they order text.
    by_id = sorted(owners, key=lambda owner: str(owner.id))
    return {owner.id: found.get(owner.id) or _before_first(owner) for owner in by_id}


async def history(connection: AsyncConnection, tenant: str, *, limit: int) -> list[SetRevision]:
    """Newest first."""
    table = set_revisions
    query = select(table).where(table.c.tenant == tenant).order_by(table.c.revision.desc())
    return [_revision(row) for row in await connection.execute(query.limit(limit))]


async def revision_of(connection: AsyncConnection, tenant: str, revision: int) -> SetRevision:
    """Raises `UnknownTenantError`, `UnknownRevisionError`."""
    owner = await require_tenant(connection, tenant)
    if revision == 0:
        return _before_first(owner)
    table = set_revisions
    query = select(table).where(table.c.tenant == tenant, table.c.revision == revision)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise UnknownRevisionError(tenant, revision)
    return _revision(row)


async def require_adapters(connection: AsyncConnection, entries: Mapping[str, str]) -> None:
    """Raises `UnknownAdapterError` for digests that are not registered."""
    query = select(adapters.c.digest).where(adapters.c.digest.in_(set(entries.values())))
    known = set(await connection.scalars(query))
    unknown = {name: digest for name, digest in entries.items() if digest not in known}
    if unknown:
        raise UnknownAdapterError(unknown)


async def append(
    connection: AsyncConnection,
    current: SetRevision,
    entries: Mapping[str, str],
    *,
    actor: str,
    rolled_back_from: int | None = None,
) -> SetRevision:
    """The revision after `current`."""
    revision = SetRevision(
        tenant=current.tenant,
        revision=current.revision + 1,
        entries=dict(entries),
        created=now(),
        actor=actor,
        rolled_back_from=rolled_back_from,
    )
    await connection.execute(
        insert(set_revisions).values(
            tenant=revision.tenant,
            revision=revision.revision,
            entries=revision.entries,
            created=revision.created,
            actor=revision.actor,
            rolled_back_from=revision.rolled_back_from,
        )
    )
    return revision


def _before_first(owner: Row[Any]) -> SetRevision:
    return SetRevision(tenant=owner.id, revision=0, entries={}, created=owner.created, actor="")


def _revision(row: Row[Any]) -> SetRevision:
    return SetRevision(
        tenant=row.tenant,
        revision=row.revision,
        entries=row.entries,
        created=row.created,
        actor=row.actor,
        rolled_back_from=row.rolled_back_from,
    )
