"""A server for many tenants: the OpenAI API for them, and the admin API for whoever runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import URL

from remix_runtime.contracts import Engine
from remix_runtime.errors import ConfigError
from server.access import TenantAccess
from server.admin.app import create_admin_app
from server.admin.services import AdminServices
from server.app import data_app
from server.auth import PROBES
from server.live.adapters import LiveAdapters
from server.live.folders import Folders
from server.live.follower import Follower
from server.live.garbage import collect_garbage_until
from server.live.metrics import LiveMetrics
from server.live.sets import LiveSets
from server.live.swap import Swaps
from server.metrics import MAX_SERIES, Metrics
from server.quotas import Quotas
from server.settings import ServerSettings
from server.state import Services
from server.store import AdapterStore
from server.tenancy.database import sqlite_file
from server.tenancy.directory import Directory


@dataclass(frozen=True, slots=True)
class TenantApps:
    """`data` has the lifespan that both need."""

    data: FastAPI
    admin: FastAPI


def create_tenant_apps(engine: Engine, settings: ServerSettings, data_dir: Path) -> TenantApps:
    """The apps; entering the lifespan of `data` starts the engine and makes the sets live that
    the database in (or, by URL, beside) `data_dir` has. It raises `RemixError`."""
    if settings.admin_key is None:
        raise ConfigError("REMIX_ADMIN_KEY: with --data-dir the admin API needs a key of its own")
    if settings.api_key is not None:
        raise ConfigError("api_key: with --data-dir keys belong to tenants: remix tenant key NAME")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            registry = CollectorRegistry()
            directory = await Directory.open(_database_url(settings, data_dir))
            stack.push_async_callback(directory.close)
            store = AdapterStore(data_dir / "store", base=None)
            stack.callback(store.close)
            stack.push_async_callback(engine.stop)
            await engine.start()

            live_metrics = LiveMetrics(registry)
            adapters = LiveAdapters(engine, Folders(directory, store), live_metrics)
            sets = LiveSets(engine.model.name, adapters)
            follower = Follower(
                directory, adapters, sets, live_metrics, poll_seconds=settings.poll_seconds
            )
            await follower.start()
            stack.push_async_callback(follower.stop)
            stop = asyncio.Event()
            group = await stack.enter_async_context(asyncio.TaskGroup())
            group.create_task(collect_garbage_until(stop, directory, store, adapters))
            stack.callback(stop.set)

            services = Services(
                settings=settings,
                engine=engine,
                access=TenantAccess(directory, follower, grace_seconds=settings.key_grace_seconds),
                quotas=Quotas(),
                sets=sets,
                adapters=adapters,
                metrics=Metrics(registry, engine, sets, max_series=MAX_SERIES),
            )
            app.state.services = services
            admin.state.services = AdminServices(
                directory=directory,
                store=store,
                swaps=Swaps(directory, adapters, sets, live_metrics),
                follower=follower,
                adapters=adapters,
                sets=sets,
                engine=engine,
                metrics=services.metrics,
                settings=settings,
            )
            yield

    admin = create_admin_app(settings.admin_key)
    return TenantApps(data_app(lifespan, (), open_paths=PROBES), admin)


def _database_url(settings: ServerSettings, data_dir: Path) -> str | URL:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return sqlite_file(data_dir / "remix.db")
