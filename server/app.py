"""The FastAPI applications around one engine: for a single user, or for many tenants and whoever
runs the server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from time import monotonic

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import URL
from starlette.types import Scope

from remix_runtime.adapter.examination import ExaminationLimits
from remix_runtime.contracts import Engine
from remix_runtime.errors import ConfigError
from remix_runtime.private import private_folder
from remix_runtime.watch import Watch
from server.admin.app import create_admin_app
from server.admin.services import AdminServices
from server.api import (
    chat,
    completions,
    dashboard,
    elsewhere,
    messages,
    models,
    probes,
    responses,
    sagemaker,
    tokens,
)
from server.http import errors
from server.http.auth import KeyMiddleware
from server.http.catch import CatchMiddleware
from server.http.cors import allow_origins
from server.http.drain import DrainMiddleware
from server.http.head import HeadMiddleware
from server.http.host import HostMiddleware
from server.http.on_behalf import tenant_on_behalf
from server.http.openapi import DOCS, correct_document, docs_router
from server.http.request import PROBES, WITHOUT_TELEMETRY, RequestMiddleware
from server.live.access import SingleUserAccess, TenantAccess
from server.live.adapters import LiveAdapters
from server.live.bodies import Bodies
from server.live.canary.series import CanarySeries
from server.live.canary_keeper import CanaryKeeper
from server.live.folders import Folders
from server.live.follower import Follower
from server.live.garbage import GarbageCollector
from server.live.leasing import Lender
from server.live.metrics import LiveMetrics
from server.live.quotas import Quotas
from server.live.routing import RoutingMonitor
from server.live.sets import LiveSets
from server.live.single_user import GivenFolders, load_single_set
from server.live.swap import Swaps
from server.metrics import MAX_SERIES, Metrics
from server.services import Services
from server.settings import ServerSettings
from server.store import AdapterStore, FetchPolicy
from server.tenancy.database import sqlite_file
from server.tenancy.directory import Directory
from server.tracing import Tracing, make_tracing

log = logging.getLogger(__name__)


def create_app(engine: Engine, settings: ServerSettings, adapters: Mapping[str, Path]) -> FastAPI:
    """Makes the app of a server without tenants. Its lifespan starts the engine, loads the adapters
    and stops the engine.

    `adapters` maps names to checkpoint folders. Entering the lifespan raises `RemixError`. Raises
    `ConfigError`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        registry = CollectorRegistry()
        try:
            await _start(engine)
            live_metrics = LiveMetrics(registry)
            live = LiveAdapters(engine, GivenFolders(), live_metrics)
            sets = LiveSets(engine.model.name, live)
            await load_single_set(engine, live, sets, adapters)
            watch, routing = Watch(), RoutingMonitor(engine, live)
            key = settings.api_key
            services = Services(
                settings=settings,
                engine=engine,
                access=SingleUserAccess(None if key is None else key.get_secret_value()),
                quotas=Quotas(),
                sets=sets,
                adapters=live,
                metrics=Metrics(registry, engine, sets, routing, max_series=MAX_SERIES),
                routing=routing,
                watch=watch,
                bodies=Bodies(settings.room_for_bodies),
            )
            live_metrics.failing.set_function(lambda: len(services.failing))
            app.state.services = services
            routing.start(watch)
            try:
                yield
            finally:
                await routing.stop()
        finally:
            await engine.stop()

    routers = (probes.metrics_router, dashboard.router)
    return _data_app(
        lifespan,
        settings,
        make_tracing(settings),
        routers,
        open_paths={*PROBES, "/", DOCS},
        has_keys=settings.api_key is not None,
    )


@dataclass(frozen=True, slots=True)
class TenantApps:
    """`data` has the lifespan that both need."""

    data: FastAPI
    admin: FastAPI


def create_tenant_apps(engine: Engine, settings: ServerSettings, data_dir: Path) -> TenantApps:
    """Makes the OpenAI API for tenants and the admin API. Entering the lifespan of `data` starts
    the engine and makes the sets live that the database has, in `data_dir` or at its URL. It raises
    `RemixError`."""
    if settings.admin_key is None:
        raise ConfigError("REMIX_ADMIN_KEY: with --data-dir the admin API needs a key of its own")
    if settings.api_key is not None:
        raise ConfigError("api_key: with --data-dir keys belong to tenants: remix tenant key NAME")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            registry = CollectorRegistry()
            _own_data_dir(data_dir)
            directory = await Directory.open(_database_url(settings, data_dir))
            stack.push_async_callback(directory.close)
            store = AdapterStore(
                data_dir / "store",
                import_root=settings.import_root,
                policy=_fetch_policy(settings),
                limits=ExaminationLimits(tensor_bytes=settings.max_import_bytes),
            )
            stack.callback(store.close)
            stack.push_async_callback(engine.stop)
            await _start(engine)

            watch, live_metrics = Watch(), LiveMetrics(registry)
            folders = Folders(directory, store)
            adapters = LiveAdapters(engine, folders, live_metrics)
            sets = LiveSets(engine.model.name, adapters)
            follower = Follower(
                directory, adapters, sets, live_metrics, watch, poll_seconds=settings.poll_seconds
            )
            log.info("loading the sets of the tenants")
            await follower.start()
            stack.push_async_callback(follower.stop)
            quotas = Quotas()
            if directory.leases is not None:
                lender = Lender(directory.leases, watch)
                quotas = Quotas(supply=lender, usage=lender.tenants)
                live_metrics.quota_servers.set_function(lambda: lender.servers)
                await lender.start()
                stack.push_async_callback(lender.stop)
            registry.register(CanarySeries(sets.canaries))
            canaries = CanaryKeeper(directory, adapters, sets, follower, live_metrics, watch)
            canaries.start()
            stack.push_async_callback(canaries.stop)
            collector = GarbageCollector(directory, store, adapters)
            collector.start(watch)
            stack.push_async_callback(collector.stop)
            routing = RoutingMonitor(engine, adapters)
            routing.start(watch)
            stack.push_async_callback(routing.stop)

            services = Services(
                settings=settings,
                engine=engine,
                access=TenantAccess(directory, follower, grace_seconds=settings.key_grace_seconds),
                quotas=quotas,
                sets=sets,
                adapters=adapters,
                metrics=Metrics(registry, engine, sets, routing, max_series=MAX_SERIES),
                routing=routing,
                watch=watch,
                bodies=Bodies(settings.room_for_bodies),
            )
            live_metrics.failing.set_function(lambda: len(services.failing))
            app.state.services = services
            admin.state.services = AdminServices(
                directory=directory,
                store=store,
                swaps=Swaps(
                    directory, adapters, follower, live_metrics, base_name=engine.model.name
                ),
                canaries=canaries,
                folders=folders,
                follower=follower,
                adapters=adapters,
                sets=sets,
                engine=engine,
                metrics=services.metrics,
                routing=routing,
                settings=settings,
                bodies=services.bodies,
                data_app=data,
            )
            yield

    tracing = make_tracing(settings)
    admin = create_admin_app(
        settings.admin_key,
        access_log=settings.access_log,
        spans=None if tracing is None else tracing.spans,
    )
    data = _data_app(lifespan, settings, tracing, (), open_paths=PROBES, has_keys=True)
    return TenantApps(data, admin)


def _data_app(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    settings: ServerSettings,
    tracing: Tracing | None,
    more: Collection[APIRouter],
    *,
    open_paths: Collection[str],
    has_keys: bool,
) -> FastAPI:
    """Makes the app of the OpenAI API. `lifespan` must set `app.state.services`."""

    @asynccontextmanager
    async def traced(app: FastAPI) -> AsyncIterator[None]:
        async with nullcontext() if tracing is None else tracing.exporting(), lifespan(app):
            yield

    app = FastAPI(
        title="remix-serve",
        summary="Many ReMix adapters over one base model, behind OpenAI's API.",
        lifespan=traced,
        docs_url=None,  # its page loads scripts from elsewhere; ours is another
        redoc_url=None,
        redirect_slashes=False,
        telemetry=WITHOUT_TELEMETRY,
    )
    modules = (completions, chat, responses, messages, models, tokens, sagemaker, elsewhere, probes)
    for router in (*(module.router for module in modules), docs_router, *more):
        app.include_router(router)
    correct_document(app)
    errors.install(app)

    async def authenticate(scope: Scope, key: str | None) -> str | None:
        tenant = tenant_on_behalf(scope)
        if tenant is not None:
            return tenant
        services: Services = scope["app"].state.services
        return await services.access.tenant_of(key)

    # The last one added is the outermost: refused keys are counted too, and a page's script can
    # read why.
    app.add_middleware(CatchMiddleware)
    app.add_middleware(
        KeyMiddleware, authenticate=authenticate, open_paths=open_paths, also_x_api_key=True
    )
    allow_origins(app, settings.cors_origin)
    # Who listens on all addresses means others too, who know them by other names.
    only_loopback = not has_keys and settings.host not in ("", "0.0.0.0", "::")  # noqa: S104
    app.add_middleware(HostMiddleware, names=settings.allowed_host, only_loopback=only_loopback)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(DrainMiddleware)
    app.add_middleware(
        RequestMiddleware,
        access_log=settings.access_log,
        spans=None if tracing is None else tracing.spans,
    )
    return app


async def _start(engine: Engine) -> None:
    log.info("starting the engine")
    began = monotonic()
    await engine.start()
    log.info("the engine serves %s after %.1f s", engine.model.name, monotonic() - began)


def _own_data_dir(data_dir: Path) -> None:
    """Makes the folder, or closes it to other users. One that belongs to another user, as a volume
    may, stays as it is: what is made in it is closed."""
    try:
        private_folder(data_dir)
    except OSError as error:
        raise ConfigError(f"data_dir: {data_dir} cannot be made: {error.strerror}") from error


def _fetch_policy(settings: ServerSettings) -> FetchPolicy:
    return FetchPolicy(
        http=settings.import_http,
        networks=tuple(map(ip_network, settings.import_network)),
        seconds=settings.import_seconds,
    )


def _database_url(settings: ServerSettings, data_dir: Path) -> str | URL:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return sqlite_file(data_dir / "remix.db")
