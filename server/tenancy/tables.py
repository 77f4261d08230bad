"""The tables as the code of this release sees them; `migrations` makes them so in a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    TypeDecorator,
    and_,
    or_,
    select,
    true,
)
from sqlalchemy.ext.asyncio import AsyncConnection

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

D = TypeVar("D", bound="DataclassInstance")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, with its zone also where the database keeps none (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)


def _tenant(**kwargs: Any) -> Column[str]:
    return Column("tenant", Text, ForeignKey("tenants.id"), nullable=False, **kwargs)


# A deleted tenant keeps its row: were it made again, its revisions go on where they ended, so an
# ETag never stands for two sets.
tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created", UtcDateTime, nullable=False),
    Column("deleted", UtcDateTime),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    _tenant(index=True),
    Column("prefix", Text, nullable=False, index=True),
    Column("hash", Text, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("revoked", UtcDateTime),
)

quotas = Table(
    "quotas",
    metadata,
    _tenant(primary_key=True),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("max_concurrent", BigInteger),
    Column("may_use_base", Boolean, nullable=False),
)

# Who shares quotas, with its last sign of life; and what each tenant's limits have left (see
# `allocation`). Only on PostgreSQL: on SQLite there is one server.
quota_servers = Table(
    "quota_servers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("seen", UtcDateTime, nullable=False),
)

quota_pools = Table(
    "quota_pools",
    metadata,
    _tenant(primary_key=True),
    Column("pools", JSON, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("created", UtcDateTime, nullable=False),
    Column("source", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("description", JSON, nullable=False),
)

# Append-only; the newest row of a tenant is what it wants to have live.
set_revisions = Table(
    "set_revisions",
    metadata,
    _tenant(primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("entries", JSON, nullable=False, key="adapters"),
    Column("created", UtcDateTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("rolled_back_from", Integer),
)

# The newest canary of each name, running (`ended` is null) or not; the audit has those before.
canaries = Table(
    "canaries",
    metadata,
    _tenant(primary_key=True),
    Column("name", Text, primary_key=True),
    Column("id", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("share", Float, nullable=False),
    Column("rules", JSON, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("ended", UtcDateTime),
    Column("outcome", Text),
    Column("reason", Text, nullable=False),
    Column("figures", JSON, nullable=False),
)

# What each server has seen of a running canary. No foreign key: a late report harms nobody.
canary_reports = Table(
    "canary_reports",
    metadata,
    Column("canary", Text, primary_key=True),
    Column("server", Text, primary_key=True),
    Column("figures", JSON, nullable=False),
)

# No foreign key: the audit outlives what it tells of.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("tenant", Text),
    Column("detail", JSON, nullable=False),
    Index("ix_audit_tenant", "tenant", "id"),
)


async def find(connection: AsyncConnection, column: Column[str], value: str) -> Row[Any] | None:
    """The row of `column`'s table that has `value` in this unique column."""
    # Nothing unprintable is ever stored, and drivers fail on it: NUL characters, lone surrogates.
    if not value.isprintable():
        return None
    query = select(column.table).where(column == value)
    return (await connection.execute(query)).one_or_none()


_BATCH = 16
"""Rows that are made into objects at a time: a row may have a thousand adapters, and others want
their turn of the event loop."""


async def rows_of(connection: AsyncConnection, query: Select[Any]) -> AsyncIterator[Row[Any]]:
    """The rows of a query, a few at a time. All are there before the first: an open cursor would be
    left behind in the database where its reader is cancelled."""
    rows = await connection.execute(query)
    for some in rows.partitions(_BATCH):
        for row in some:
            yield row
        await asyncio.sleep(0)


def after_item(column: Column[Any], row: Row[Any] | None, then: Column[Any]) -> ColumnElement[bool]:
    """Whether a row comes behind `row`, in the order of `column` and, where that is the same, of
    `then`. All do where there is none."""
    if row is None:
        return true()
    here, there = getattr(row, column.key), getattr(row, then.key)
    return or_(column > here, and_(column == here, then > there))


def from_row(record: type[D], row: Row[Any]) -> D:
    """Makes a dataclass of a row. Its fields have the names of the row's columns; the row may have
    more."""
    return record(**{field.name: getattr(row, field.name) for field in fields(record)})
