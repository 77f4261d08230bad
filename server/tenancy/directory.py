"""The directory: tenants, their keys, quotas and adapter sets, and every change to them.

Every change is one write transaction that also writes its audit row; a change that would change
nothing writes nothing, so all of them can be repeated after a lost answer.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict

from sqlalchemy import URL, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.tenancy import canaries, canary_rows, sets, tables
from server.tenancy import keys as api_keys
from server.tenancy.changes import changes, record
from server.tenancy.database import Database
from server.tenancy.errors import (
    AdapterNotFoundError,
    ReferencedError,
    StaleRevisionError,
    TenantExistsError,
    UnknownAdapterError,
    UnknownKeyError,
)
from server.tenancy.leases import Leases
from server.tenancy.migrate import migrate
from server.tenancy.records import (
    AdapterRecord,
    AuditRow,
    KeyInfo,
    NewKey,
    Quota,
    SetRevision,
    Tenant,
    check_name,
    now,
)
from server.tenancy.snapshot import Snapshot, take
from server.tenancy.tables import after_item, find, from_row, rows_of


class Directory:
    """Everything that is remembered. Any method may raise `DatabaseUnavailableError`, and every
    method that names a tenant `UnknownTenantError`; `actor` is the name in the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.canaries = canaries.CanaryDirectory(database)

    @classmethod
    async def open(cls, url: str | URL) -> Directory:
        """Connects and migrates. Raises `ConfigError`, `DatabaseUnavailableError`."""
        database = Database(url)
        try:
            await migrate(database)
        except BaseException:
            await database.close()
            raise
        return cls(database)

    async def close(self) -> None:
        await self._database.close()

    @property
    def leases(self) -> Leases | None:
        """What servers on this database share of quotas; None where there is one server only."""
        return None if self._database.is_sqlite else Leases(self._database)

    # Tenants

    async def create_tenant(self, tenant: str, *, actor: str) -> Tenant:
        check_name("tenant", tenant)
        made = Tenant(id=tenant, created=now())
        async with self._database.write() as connection:
            row = await find(connection, tables.tenants.c.id, tenant)
            if row is None:
                await connection.execute(insert(tables.tenants).values(asdict(made)))
            elif row.deleted is not None:
                of_tenant = tables.tenants.c.id == tenant
                revived = update(tables.tenants).where(of_tenant)
                await connection.execute(revived.values(created=made.created, deleted=None))
            else:
                raise TenantExistsError(tenant)
            await record(connection, actor, "tenant.create", tenant)
        return made

    async def delete_tenant(self, tenant: str, *, actor: str) -> None:
        """Deletes a tenant with its keys, quota and set; its audit rows stay."""
        async with self._database.write() as connection:
            current = await sets.newest(connection, tenant)
            await canaries.forget_tenant(connection, tenant)
            mine = (tables.api_keys, tables.quotas, tables.quota_pools, tables.set_revisions)
            for table in mine:
                await connection.execute(delete(table).where(table.c.tenant == tenant))
            of_tenant = tables.tenants.c.id == tenant
            await connection.execute(update(tables.tenants).where(of_tenant).values(deleted=now()))
            if current.revision:
                await sets.append(connection, current, {}, actor=actor)
            await record(connection, actor, "tenant.delete", tenant)

    async def tenants(self, *, limit: int | None = None, after: str | None = None) -> list[Tenant]:
        """The tenants by their ids, those behind the id `after`."""
        table = tables.tenants
        # Databases differ in how they order text.
        by_id = table.c.id.collate("BINARY" if self._database.is_sqlite else "C")
        query = select(table).where(table.c.deleted.is_(None)).order_by(by_id).limit(limit)
        if after is not None:
            check_name("after", after)
            query = query.where(by_id > after)
        async with self._database.read() as connection:
            return [from_row(Tenant, row) async for row in rows_of(connection, query)]

    async def tenant(self, tenant: str) -> Tenant:
        async with self._database.read() as connection:
            row = await sets.require_tenant(connection, tenant)
        return from_row(Tenant, row)

    # Keys

    async def create_key(self, tenant: str, *, actor: str) -> NewKey:
        """Makes a key. Only its result ever has the secret."""
        key = NewKey(id=secrets.token_hex(8), secret=api_keys.new_secret())
        prefix = api_keys.prefix_of(key.secret)
        async with self._database.write() as connection:
            await sets.require_tenant(connection, tenant)
            await connection.execute(
                insert(tables.api_keys).values(
                    id=key.id,
                    tenant=tenant,
                    prefix=prefix,
                    hash=api_keys.hash_of(key.secret),
                    created=now(),
                )
            )
            detail = {"key": key.id, "prefix": prefix}
            await record(connection, actor, "key.create", tenant, detail)
        return key

    async def revoke_key(self, key_id: str, *, actor: str) -> None:
        table = tables.api_keys
        async with self._database.write() as connection:
            row = await find(connection, table.c.id, key_id)
            if row is None:
                raise UnknownKeyError(key_id)
            if row.revoked is None:
                revoked = update(table).where(table.c.id == key_id).values(revoked=now())
                await connection.execute(revoked)
                detail = {"key": key_id, "prefix": row.prefix}
                await record(connection, actor, "key.revoke", row.tenant, detail)

    async def keys(
        self, tenant: str, *, limit: int | None = None, after: str | None = None
    ) -> list[KeyInfo]:
        """A tenant's keys, oldest first, revoked ones too, those behind the key with the id
        `after`. Raises `UnknownKeyError`."""
        table = tables.api_keys
        async with self._database.read() as connection:
            await sets.require_tenant(connection, tenant)
            last = None if after is None else await find(connection, table.c.id, after)
            if after is not None and (last is None or last.tenant != tenant):
                raise UnknownKeyError(after)
            query = select(table).where(
                table.c.tenant == tenant, after_item(table.c.created, last, table.c.id)
            )
            query = query.order_by(table.c.created, table.c.id).limit(limit)
            return [from_row(KeyInfo, row) async for row in rows_of(connection, query)]

    async def authenticate(self, secret: str) -> str | None:
        """The tenant that the key belongs to; None for anything else."""
        prefix = api_keys.prefix_of(secret)
        if prefix is None:
            return None
        table = tables.api_keys
        query = select(table).where(table.c.prefix == prefix, table.c.revoked.is_(None))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return next((row.tenant for row in rows if api_keys.matches(secret, row.hash)), None)

    # Quotas

    async def quota(self, tenant: str) -> Quota:
        async with self._database.read() as connection:
            await sets.require_tenant(connection, tenant)
            return await _quota(connection, tenant)

    async def set_quota(self, tenant: str, quota: Quota, *, actor: str) -> None:
        table = tables.quotas
        async with self._database.write() as connection:
            await sets.require_tenant(connection, tenant)
            if await _quota(connection, tenant) == quota:
                return
            values = asdict(quota)
            await connection.execute(delete(table).where(table.c.tenant == tenant))
            await connection.execute(insert(table).values(tenant=tenant, **values))
            await record(connection, actor, "quota.set", tenant, values)

    # Adapters

    async def add_adapter(self, adapter: AdapterRecord, *, actor: str) -> AdapterRecord:
        """Registers an adapter. Returns the record under its digest: the one that was there, or the
        given one."""
        table = tables.adapters
        async with self._database.write() as connection:
            row = await find(connection, table.c.digest, adapter.digest)
            if row is not None:
                return from_row(AdapterRecord, row)
            await connection.execute(insert(table).values(asdict(adapter)))
            detail = {
                "digest": adapter.digest,
                "source": adapter.source,
                "num_bytes": adapter.num_bytes,
            }
            await record(connection, actor, "adapter.add", None, detail)
        return adapter

    async def adapters(
        self, *, limit: int | None = None, after: str | None = None
    ) -> list[AdapterRecord]:
        """Registered adapters, oldest first, those behind the digest `after`. Raises
        `AdapterNotFoundError`."""
        table = tables.adapters
        async with self._database.read() as connection:
            last = None if after is None else await find(connection, table.c.digest, after)
            if after is not None and last is None:
                raise AdapterNotFoundError(after)
            query = select(table).where(after_item(table.c.created, last, table.c.digest))
            query = query.order_by(table.c.created, table.c.digest).limit(limit)
            return [from_row(AdapterRecord, row) async for row in rows_of(connection, query)]

    async def digests(self) -> set[str]:
        """Those of all registered adapters."""
        async with self._database.read() as connection:
            return set(await connection.scalars(select(tables.adapters.c.digest)))

    async def adapter(self, digest: str) -> AdapterRecord:
        """Raises `AdapterNotFoundError`."""
        table = tables.adapters
        async with self._database.read() as connection:
            row = await find(connection, table.c.digest, digest)
        if row is None:
            raise AdapterNotFoundError(digest)
        return from_row(AdapterRecord, row)

    async def unregistered(self, adapters: Mapping[str, str]) -> dict[str, str]:
        """The adapters of a wanted set whose digests are not registered. Raises
        `InvalidValueError`."""
        async with self._database.read() as connection:
            return await sets.unregistered(connection, adapters)

    async def delete_adapter(self, digest: str, *, actor: str) -> None:
        """Raises `ReferencedError` while a tenant's newest set, or a canary, names it;
        `AdapterNotFoundError`."""
        table = tables.adapters
        async with self._database.write() as connection:
            if await find(connection, table.c.digest, digest) is None:
                raise AdapterNotFoundError(digest)
            live = await sets.newest_of_all(connection)
            users = [tenant for tenant, item in live.items() if digest in item.adapters.values()]
            for tenant, running in (await canary_rows.running(connection)).items():
                if any(canary.digest == digest for canary in running.values()):
                    users.append(tenant)
            if users:
                raise ReferencedError(digest, users)
            await connection.execute(delete(table).where(table.c.digest == digest))
            await record(connection, actor, "adapter.delete", None, {"digest": digest})

    # Sets

    async def current_set(self, tenant: str) -> SetRevision:
        async with self._database.read() as connection:
            return await sets.newest(connection, tenant)

    async def current_sets(self) -> dict[str, SetRevision]:
        """The newest set of every tenant, as of one moment."""
        async with self._database.read() as connection:
            return await sets.newest_of_all(connection)

    async def revisions(
        self, tenant: str, *, limit: int, before: int | None = None
    ) -> list[SetRevision]:
        """A tenant's revisions, newest first; `before` is the one to go on from."""
        async with self._database.read() as connection:
            await sets.require_tenant(connection, tenant)
            return await sets.history(connection, tenant, limit=limit, before=before)

    async def revision(self, tenant: str, revision: int) -> SetRevision:
        """Raises `UnknownRevisionError`."""
        async with self._database.read() as connection:
            return await sets.revision_of(connection, tenant, revision)

    async def put_set(
        self, tenant: str, adapters: Mapping[str, str], *, expected: int | None, actor: str
    ) -> SetRevision:
        """Makes `adapters` the newest set if the current revision is `expected` (None: any).

        Where the current set has these very adapters it is returned and nothing is written, stale
        `expected` or not: a repeated call after a lost answer succeeds. Raises
        `StaleRevisionError`, `UnknownAdapterError`, `InvalidValueError`.
        """
        async with self._database.write() as connection:
            return await _replace(connection, tenant, adapters, expected=expected, actor=actor)

    async def rollback_set(
        self, tenant: str, to: int, *, expected: int | None, actor: str
    ) -> SetRevision:
        """Writes a new revision with the adapters of revision `to`, under the rules of `put_set`.
        Raises `UnknownRevisionError` too."""
        async with self._database.write() as connection:
            adapters = (await sets.revision_of(connection, tenant, to)).adapters
            return await _replace(
                connection, tenant, adapters, expected=expected, actor=actor, rolled_back_from=to
            )

    # Changes

    async def audit(
        self, *, tenant: str | None = None, limit: int, before: int | None = None
    ) -> list[AuditRow]:
        """The audit rows, newest first; `before` is the id to go on from. Deleted tenants still
        have theirs."""
        table = tables.audit
        query = select(table).order_by(table.c.id.desc()).limit(limit)
        if tenant is not None:
            check_name("tenant", tenant)
            query = query.where(table.c.tenant == tenant)
        if before is not None:
            query = query.where(table.c.id < before)
        async with self._database.read() as connection:
            return [from_row(AuditRow, row) async for row in rows_of(connection, query)]

    async def snapshot(self, held: Snapshot | None = None) -> Snapshot:
        """Reads all that the data path needs, as of one moment. Returns `held` itself if nothing
        has changed."""
        async with self._database.read() as connection:
            return await take(connection, held)

    def changes(self, poll_seconds: float) -> AsyncGenerator[int, None]:
        """Yields the newest change's id (`Snapshot.change`) after every look at the database: at
        the start, at least every `poll_seconds`, and on PostgreSQL at once after a change, by this
        process or another. Ends with the error of a look that fails. Close it (`aclosing`)."""
        return changes(self._database, poll_seconds)


async def _replace(
    connection: AsyncConnection,
    tenant: str,
    adapters: Mapping[str, str],
    *,
    expected: int | None,
    actor: str,
    rolled_back_from: int | None = None,
) -> SetRevision:
    current = await sets.newest(connection, tenant)
    if current.adapters == dict(adapters):
        return current
    if expected is not None and expected != current.revision:
        raise StaleRevisionError(tenant, found=current.revision, expected=expected)
    if unknown := await sets.unregistered(connection, adapters):
        raise UnknownAdapterError(unknown)
    new = await sets.append(
        connection, current, adapters, actor=actor, rolled_back_from=rolled_back_from
    )
    await canaries.supersede(connection, current, new, actor=actor)
    detail: dict[str, object] = {"revision": new.revision, "adapters": new.adapters}
    if rolled_back_from is None:
        await record(connection, actor, "set.put", tenant, detail)
    else:
        detail["rolled_back_from"] = rolled_back_from
        await record(connection, actor, "set.rollback", tenant, detail)
    return new


async def _quota(connection: AsyncConnection, tenant: str) -> Quota:
    row = await find(connection, tables.quotas.c.tenant, tenant)
    return Quota() if row is None else from_row(Quota, row)
