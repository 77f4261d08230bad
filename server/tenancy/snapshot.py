"""What the data path needs of the directory, as of one moment and in memory: it serves without
asking the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.tenancy import canary_rows, sets, tables
from server.tenancy import keys as api_keys
from server.tenancy.canary_rows import Canary
from server.tenancy.records import Quota, SetRevision
from server.tenancy.tables import from_row, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantState:
    set: SetRevision
    """The newest revision: what the tenant wants to have live."""
    quota: Quota
    canaries: Mapping[str, Canary] = field(default_factory=dict)
    """Those that run, by the names whose requests they share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    tenant: str
    hash: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the data path needs: every change up to `change` and no later one."""

    change: int
    """The id of the newest audit row; 0 before the first."""
    tenants: Mapping[str, TenantState]
    """Tenants by id, in the order of the ids."""
    keys: Mapping[str, Sequence[StoredKey]] = field(repr=False)
    """Keys that are not revoked, by their prefix."""

    def authenticate(self, secret: str) -> str | None:
        """The tenant that the key belongs to; None for anything else."""
        found = self.keys.get(api_keys.prefix_of(secret) or "", ())
        return next((key.tenant for key in found if api_keys.matches(secret, key.hash)), None)


async def take(connection: AsyncConnection, held: Snapshot | None) -> Snapshot:
    """Reads a snapshot; returns `held` if nothing has changed since. Consistent if the connection's
    transaction is."""
    change = await newest_change(connection)
    if held is not None and held.change == change:
        return held
    known = None if held is None else {name: state.set for name, state in held.tenants.items()}
    live = await sets.newest_of_all(connection, known)
    rows = await connection.execute(select(tables.quotas))
    quotas = {row.tenant: from_row(Quota, row) for row in rows}
    running = await canary_rows.running(connection)
    table = tables.api_keys
    keys: dict[str, list[StoredKey]] = defaultdict(list)
    async for row in rows_of(connection, select(table).where(table.c.revoked.is_(None))):
        keys[row.prefix].append(from_row(StoredKey, row))
    return Snapshot(
        change=change,
        tenants={
            tenant: TenantState(
                set=revision,
                quota=quotas.get(tenant, Quota()),
                canaries=running.get(tenant, {}),
            )
            for tenant, revision in live.items()
        },
        keys=dict(keys),
    )


async def newest_change(connection: AsyncConnection) -> int:
    """The id of the newest audit row; 0 before the first."""
    return await connection.scalar(select(func.max(tables.audit.c.id))) or 0
