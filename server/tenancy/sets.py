"""The rows of adapter sets: reading the newest revisions, appending another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.tenancy import tables
from server.tenancy.errors import UnknownRevisionError, UnknownTenantError
from server.tenancy.records import SetRevision, check_adapters, now
from server.tenancy.tables import find, from_row, rows_of, set_revisions, tenants

# The column `entries` has the name `adapters` here.
_REVISIONS = select(*(column.label(column.key) for column in set_revisions.c))


async def require_tenant(connection: AsyncConnection, tenant: str) -> Row[Any]:
    row = await find(connection, tenants.c.id, tenant)
    if row is None or row.deleted is not None:
        raise UnknownTenantError(tenant)
    return row


async def newest(connection: AsyncConnection, tenant: str) -> SetRevision:
    """The newest revision of a tenant's set. Raises `UnknownTenantError`."""
    owner = await require_tenant(connection, tenant)
    found = await history(connection, tenant, limit=1)
    return found[0] if found else _before_first(owner)


async def newest_of_all(
    connection: AsyncConnection, held: Mapping[str, SetRevision] | None = None
) -> dict[str, SetRevision]:
    """The newest revisions by tenant, in the order of the tenants' ids. Those that are `held` are
    not read again: a revision never changes."""
    table = set_revisions
    last = select(table.c.tenant, func.max(table.c.revision).label("revision"))
    last_of = last.group_by(table.c.tenant).subquery()
    query = _REVISIONS.join(
        last_of,
        (table.c.tenant == last_of.c.tenant) & (table.c.revision == last_of.c.revision),
    )
    found: dict[str, SetRevision] = {}
    if held is None:
        async for row in rows_of(connection, query):
            found[row.tenant] = from_row(SetRevision, row)
    else:
        for tenant, revision in await connection.execute(last.group_by(table.c.tenant)):
            known = held.get(tenant)
            if known is None or known.revision != revision:
                of_tenant = (table.c.tenant == tenant) & (table.c.revision == revision)
                row = (await connection.execute(_REVISIONS.where(of_tenant))).one()
                known = from_row(SetRevision, row)
            found[tenant] = known
    owners = await connection.execute(select(tenants).where(tenants.c.deleted.is_(None)))
    # Sorted here: databases differ in how they order text.
    by_id = sorted(owners, key=lambda owner: str(owner.id))
    return {owner.id: found.get(owner.id) or _before_first(owner) for owner in by_id}


async def history(
    connection: AsyncConnection, tenant: str, *, limit: int, before: int | None = None
) -> list[SetRevision]:
    """The revisions of a tenant's set, newest first, older than `before`."""
    table = set_revisions
    query = _REVISIONS.where(table.c.tenant == tenant).order_by(table.c.revision.desc())
    if before is not None:
        query = query.where(table.c.revision < before)
    return [from_row(SetRevision, row) async for row in rows_of(connection, query.limit(limit))]


async def revision_of(connection: AsyncConnection, tenant: str, revision: int) -> SetRevision:
    """One revision of a tenant's set. Raises `UnknownTenantError`, `UnknownRevisionError`."""
    owner = await require_tenant(connection, tenant)
    if revision == 0:
        return _before_first(owner)
    table = set_revisions
    query = _REVISIONS.where(table.c.tenant == tenant, table.c.revision == revision)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise UnknownRevisionError(tenant, revision)
    return from_row(SetRevision, row)


async def unregistered(connection: AsyncConnection, adapters: Mapping[str, str]) -> dict[str, str]:
    """Those of a wanted set whose digests are not registered. Every change of a set comes through
    here, so this is where its form is checked. Raises `InvalidValueError`."""
    check_adapters(adapters)
    digest = tables.adapters.c.digest
    known = set(await connection.scalars(select(digest).where(digest.in_(set(adapters.values())))))
    return {name: wanted for name, wanted in adapters.items() if wanted not in known}


async def append(
    connection: AsyncConnection,
    current: SetRevision,
    adapters: Mapping[str, str],
    *,
    actor: str,
    rolled_back_from: int | None = None,
) -> SetRevision:
    """Writes the revision after `current`."""
    revision = SetRevision(
        tenant=current.tenant,
        revision=current.revision + 1,
        adapters=dict(adapters),
        created=now(),
        actor=actor,
        rolled_back_from=rolled_back_from,
    )
    await connection.execute(insert(set_revisions).values(asdict(revision)))
    return revision


def _before_first(owner: Row[Any]) -> SetRevision:
    return SetRevision(
        tenant=owner.id,
        revision=0,
        adapters={},
        created=owner.created,
        actor="",
        rolled_back_from=None,
    )
