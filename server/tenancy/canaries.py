"""Changes of canaries, each one write transaction with its audit row; and the servers' reports."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.tenancy import sets
from server.tenancy.canary_rows import Canary, CanaryRules, Outcome, canary_of, newest
from server.tenancy.changes import record
from server.tenancy.database import Database
from server.tenancy.errors import CanaryError, UnknownAdapterError, UnknownCanaryError
from server.tenancy.records import SetRevision, check_digest, check_name, now
from server.tenancy.tables import canaries, canary_reports, rows_of


class CanaryDirectory:
    """The canaries that are remembered. Raises as `Directory` does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(
        self,
        tenant: str,
        name: str,
        digest: str,
        *,
        share: float,
        rules: CanaryRules,
        actor: str,
        dry_run: bool = False,
    ) -> Canary:
        """Begins a canary, in the place of one that has ended. Returns the one that runs where it
        is the same, and nothing is written. Raises `CanaryError` where another one runs, or the
        name has no adapter or this one; `UnknownAdapterError`, `InvalidValueError`."""
        check_name("name", name)
        check_digest("digest", digest)
        canary = Canary(
            tenant=tenant,
            name=name,
            id=secrets.token_hex(8),
            digest=digest,
            share=share,
            rules=rules,
            created=now(),
            actor=actor,
        )
        opened = self._database.read() if dry_run else self._database.write()
        async with opened as connection:
            current = await sets.newest(connection, tenant)
            if await sets.unregistered(connection, {name: digest}):
                raise UnknownAdapterError({name: digest})
            before = await _newest_of(connection, tenant, name)
            if before is not None and before.ended is None:
                if _is_same(before, canary):
                    return before
                raise CanaryError(
                    f"{name}: a canary of adapter {before.digest} runs already; end it first"
                )
            if (live := current.adapters.get(name)) is None:
                raise CanaryError(
                    f"the set has no {name}: a canary shares the requests of a live adapter; put "
                    "the first one into the set"
                )
            if live == digest:
                raise CanaryError(f"{name}: adapter {digest} is live already")
            if not dry_run:
                await _forget(connection, tenant, name)
                values = {**asdict(canary), "rules": asdict(rules)}
                await connection.execute(insert(canaries).values(values))
                told = {"name": name, "canary": canary.id, "digest": digest, "live": live}
                detail = {**told, "share": share, "rules": asdict(rules)}
                await record(connection, actor, "canary.begin", tenant, detail)
        return canary

    async def end(
        self, canary: Canary, outcome: Outcome, *, reason: str, figures: Any, actor: str
    ) -> Canary:
        """Ends a canary that runs, and returns it; one that has ended stays as it is. `PROMOTED`
        gives its adapter the name, as a new revision of the set, in the same transaction. Raises
        `UnknownCanaryError` where another one has taken its place."""
        async with self._database.write() as connection:
            found = await _newest_of(connection, canary.tenant, canary.name)
            if found is None or found.id != canary.id:
                raise UnknownCanaryError(canary.name)
            if found.ended is not None:
                return found
            ended = await _end(
                connection, found, outcome, reason=reason, figures=figures, actor=actor
            )
            if outcome is Outcome.PROMOTED:
                current = await sets.newest(connection, canary.tenant)
                wanted = {**current.adapters, canary.name: canary.digest}
                new = await sets.append(connection, current, wanted, actor=actor)
                detail = {"revision": new.revision, "adapters": wanted, "canary": canary.id}
                await record(connection, actor, "set.put", canary.tenant, detail)
            return ended

    async def of_tenant(self, tenant: str) -> list[Canary]:
        """The newest canary of each name, running or not, by name."""
        async with self._database.read() as connection:
            await sets.require_tenant(connection, tenant)
            return [canary_of(row) async for row in rows_of(connection, newest(tenant))]

    async def newest(self, tenant: str, name: str) -> Canary:
        """Raises `UnknownCanaryError`."""
        check_name("name", name)
        async with self._database.read() as connection:
            await sets.require_tenant(connection, tenant)
            found = await _newest_of(connection, tenant, name)
        if found is None:
            raise UnknownCanaryError(name)
        return found

    # What servers have seen

    async def report(self, canary: str, server: str, figures: Mapping[str, Any]) -> None:
        """Replaces a server's report on a canary. No change that anybody follows: no audit row."""
        table = canary_reports
        async with self._database.write() as connection:
            mine = (table.c.canary == canary) & (table.c.server == server)
            await connection.execute(delete(table).where(mine))
            values = {"canary": canary, "server": server, "figures": figures}
            await connection.execute(insert(table).values(values))

    async def reports(self, ids: Collection[str]) -> dict[str, dict[str, Mapping[str, Any]]]:
        """The figures of each server, by canary and server."""
        found: dict[str, dict[str, Mapping[str, Any]]] = {canary: {} for canary in ids}
        query = select(canary_reports).where(canary_reports.c.canary.in_(list(ids)))
        async with self._database.read() as connection:
            async for row in rows_of(connection, query):
                found[row.canary][row.server] = row.figures
        return found


async def supersede(
    connection: AsyncConnection, before: SetRevision, after: SetRevision, *, actor: str
) -> None:
    """Ends the canaries of names whose adapter is another one in a new revision of the set."""
    async for row in rows_of(connection, newest(after.tenant).where(canaries.c.ended.is_(None))):
        canary = canary_of(row)
        wanted = after.adapters.get(canary.name)
        if wanted == before.adapters.get(canary.name):
            continue
        outcome = Outcome.PROMOTED if wanted == canary.digest else Outcome.SUPERSEDED
        reason = f"revision {after.revision} of the set changed {canary.name}"
        await _end(connection, canary, outcome, reason=reason, figures={}, actor=actor)


async def forget_tenant(connection: AsyncConnection, tenant: str) -> None:
    """Deletes all canaries of a tenant that is being deleted."""
    async for row in rows_of(connection, newest(tenant)):
        await _forget(connection, tenant, row.name)


async def _newest_of(connection: AsyncConnection, tenant: str, name: str) -> Canary | None:
    query = newest(tenant).where(canaries.c.name == name)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else canary_of(row)


def _is_same(running: Canary, wanted: Canary) -> bool:
    return replace(wanted, id=running.id, created=running.created, actor=running.actor) == running


async def _end(
    connection: AsyncConnection,
    canary: Canary,
    outcome: Outcome,
    *,
    reason: str,
    figures: Any,
    actor: str,
) -> Canary:
    ended = replace(canary, ended=now(), outcome=outcome, reason=reason, figures=figures)
    mine = (canaries.c.tenant == canary.tenant) & (canaries.c.name == canary.name)
    await connection.execute(
        update(canaries)
        .where(mine)
        .values(ended=ended.ended, outcome=outcome, reason=reason, figures=figures)
    )
    of_canary = canary_reports.c.canary == canary.id
    await connection.execute(delete(canary_reports).where(of_canary))
    detail = {"name": canary.name, "canary": canary.id, "digest": canary.digest}
    detail |= {"reason": reason, "figures": figures}
    await record(connection, actor, f"canary.{outcome}", canary.tenant, detail)
    return ended


async def _forget(connection: AsyncConnection, tenant: str, name: str) -> None:
    mine = (canaries.c.tenant == tenant) & (canaries.c.name == name)
    ids = select(canaries.c.id).where(mine).scalar_subquery()
    await connection.execute(delete(canary_reports).where(canary_reports.c.canary == ids))
    await connection.execute(delete(canaries).where(mine))
