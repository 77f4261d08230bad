"""Quotas of all servers on one PostgreSQL: each exchanges what it holds of them with the pools.

The clock is PostgreSQL's. A server that has not been seen for `LEASE_SECONDS` must not use what it
held; the others take it for used `GRACE_SECONDS` later, so that no slow answer lets both have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, Text, bindparam, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.tenancy.allocation import Answer, Pool, Report
from server.tenancy.database import Database
from server.tenancy.errors import LeaseLostError
from server.tenancy.tables import quota_pools

LEASE_SECONDS = 5.0
"""Seconds for which a server may use what it holds, from the moment in which it asked."""
GRACE_SECONDS = 3.0
EXCHANGE_SECONDS = 2.0
"""Seconds after which an exchange has failed: fewer than those of grace."""
CHANNEL = "remix_quotas"
"""Where servers are told the tenants of whom another one needs more, or got something back."""

Reports = Mapping[str, Mapping[str, Report]]
"""By tenant and limit (`LIMITS`)."""

LIMITS = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "places": "max_concurrent",
}
"""The limits that are shared, and their fields in a quota."""
PLACES = "places"

_LIVE = f"seen > clock_timestamp() - interval '{LEASE_SECONDS} s'"
_DEAD = f"seen < clock_timestamp() - interval '{LEASE_SECONDS + GRACE_SECONDS} s'"

_OPEN = """
    WITH made AS (
        INSERT INTO quota_pools (tenant, pools)
        SELECT id, '{}' FROM tenants WHERE id = ANY(:tenants) ORDER BY id
        ON CONFLICT DO NOTHING
    )
"""
_ENTER = text(
    f"""
    {_OPEN} INSERT INTO quota_servers (id, seen) VALUES (:server, clock_timestamp()) RETURNING id
    """  # noqa: S608 - only constants
)
_BEAT = text(
    f"""
    {_OPEN} UPDATE quota_servers SET seen = clock_timestamp()
    WHERE id = :server AND {_LIVE} RETURNING id
    """  # noqa: S608
)
# `FOR UPDATE` takes the rows in their order, whoever else wants some of them.
_TAKE = text(
    """
    SELECT p.tenant, p.pools, q.requests_per_minute, q.tokens_per_minute, q.max_concurrent
    FROM quota_pools p LEFT JOIN quotas q ON q.tenant = p.tenant
    WHERE p.tenant = ANY(:tenants) ORDER BY p.tenant FOR UPDATE OF p
    """
).bindparams(bindparam("tenants", type_=ARRAY(Text)))
# After the rows are locked: who has given an answer before is alive in this one.
_ALIVE = text(
    f"""
    SELECT extract(epoch FROM clock_timestamp())::float8 AS now,
           array_agg(id) FILTER (WHERE NOT {_DEAD}) AS alive,
           count(*) FILTER (WHERE {_DEAD}) AS dead
    FROM quota_servers
    """  # noqa: S608
)
_BURY = text(f"DELETE FROM quota_servers WHERE {_DEAD}")  # noqa: S608
_LEAVE = text("DELETE FROM quota_servers WHERE id = :server")
_TELL = text(f"SELECT pg_notify('{CHANNEL}', :told)")


@dataclass(frozen=True, slots=True)
class Exchanged:
    answers: Mapping[str, Mapping[str, Answer]]
    servers: int
    """How many servers share the quotas, this one among them."""


class Leases:
    """The pools of all tenants' limits."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def exchange(self, server: str, reports: Reports, *, enters: bool) -> Exchanged:
        """Renews the server's leases, and exchanges reports for answers in one transaction.
        `enters`: under this name for the first time. Raises `DatabaseUnavailableError`;
        `LeaseLostError` where the server was not seen in time."""
        tenants = sorted(reports)
        async with self.database.share(EXCHANGE_SECONDS) as connection:
            sign = (_ENTER if enters else _BEAT).bindparams(bindparam("tenants", type_=ARRAY(Text)))
            beat = await connection.scalar(sign, {"server": server, "tenants": tenants})
            if beat is None:
                raise LeaseLostError(server)
            rows = (await connection.execute(_TAKE, {"tenants": tenants})).all() if tenants else ()
            now, alive, dead = (await connection.execute(_ALIVE)).one()
            if dead:
                await connection.execute(_BURY)
            answers: dict[str, dict[str, Answer]] = {}
            changed, told = [], set()
            for row in rows:
                pools: dict[str, Any] = {}
                answers[row.tenant] = {}
                for limit, answer, pool in _exchanged(row, server, reports[row.tenant], alive, now):
                    pools[limit] = pool
                    if answer is not None:
                        answers[row.tenant][limit] = answer
                        lacks = reports[row.tenant][limit].need > answer.granted
                        # Others may give something back, or have got it.
                        if (lacks and answer.elsewhere > 0) or (
                            answer.is_needed and answer.gave > 0
                        ):
                            told.add(row.tenant)
                changed.append({"of": row.tenant, "pools": pools})
            await _write(connection, changed)
            for tenant in sorted(told):
                await connection.execute(_TELL, {"told": f"{server} {tenant}"})
        return Exchanged(answers, len(alive))

    async def leave(self, server: str, reports: Reports) -> None:
        """Gives everything back. Raises as `exchange`."""
        await self.exchange(server, reports, enters=False)
        async with self.database.share(EXCHANGE_SECONDS) as connection:
            await connection.execute(_LEAVE, {"server": server})


def _exchanged(
    row: Any, server: str, reports: Mapping[str, Report], alive: list[str], now: float
) -> Iterable[tuple[str, Answer | None, dict[str, Any]]]:
    """Of each limit that the tenant has; one that it no longer has is forgotten."""
    for name, column in LIMITS.items():
        limit = getattr(row, column)
        if limit is None:
            continue
        stored = row.pools.get(name)
        pool = (
            Pool.full(limit, now, refills=name != PLACES) if stored is None else Pool.load(stored)
        )
        answer = None
        if name in reports:
            answer = pool.exchange(server, reports[name], limit=limit, alive=alive, now=now)
        yield name, answer, pool.dump()


async def _write(connection: AsyncConnection, changed: list[dict[str, Any]]) -> None:
    if changed:
        table = quota_pools
        query = update(table).where(table.c.tenant == bindparam("of"))
        await connection.execute(query.values(pools=bindparam("pools")), changed)
