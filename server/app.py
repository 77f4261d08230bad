"""The FastAPI applications around one engine: for a single user, or for many tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import Scope

from remix_runtime.contracts import Engine
from server import errors
from server.access import SingleUserAccess
from server.auth import PROBES, KeyMiddleware
from server.live.adapters import LiveAdapters
from server.live.metrics import LiveMetrics
from server.live.sets import LiveSets
from server.metrics import MAX_SERIES, Metrics, RequestMiddleware
from server.quotas import Quotas
from server.routes import chat, completions, dashboard, models, probes
from server.settings import ServerSettings
from server.single_user import load_single_set
from server.state import Services


def create_app(engine: Engine, settings: ServerSettings, adapters: Mapping[str, Path]) -> FastAPI:
    """The app of a server without tenants; its lifespan starts the engine, loads the adapters and
    stops the engine.

    `adapters` maps names to checkpoint folders. Entering the lifespan raises `RemixError`.
    """

    async def unknown(digest: str) -> Path:
        raise AssertionError(f"adapter {digest} is in no folder that was given at the start")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        registry = CollectorRegistry()
        try:
            await engine.start()
            live = LiveAdapters(engine, unknown, LiveMetrics(registry))
            sets = LiveSets(engine.model.name, live)
            await load_single_set(engine, live, sets, adapters)
            key = settings.api_key
            app.state.services = Services(
                settings=settings,
                engine=engine,
                access=SingleUserAccess(None if key is None else key.get_secret_value()),
                quotas=Quotas(),
                sets=sets,
                adapters=live,
                metrics=Metrics(registry, engine, sets, max_series=MAX_SERIES),
            )
            yield
        finally:
            await engine.stop()

    routers = (probes.metrics_router, dashboard.router)
    return data_app(lifespan, routers, open_paths={*PROBES, "/"})


def data_app(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    more: Collection[APIRouter],
    *,
    open_paths: Collection[str],
) -> FastAPI:
    """The OpenAI API. `lifespan` must set `app.state.services`."""
    app = FastAPI(
        title="remix-serve",
        summary="Many ReMix adapters over one base model, behind OpenAI's API.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (completions.router, chat.router, models.router, probes.router, *more):
        app.include_router(router)
    errors.install(app)

    async def authenticate(scope: Scope, key: str | None) -> str | None:
        services: Services = scope["app"].state.services
        return await services.access.tenant_of(key)

    # The last one added is the outermost: refused keys are counted too.
    app.add_middleware(KeyMiddleware, authenticate=authenticate, open_paths=open_paths)
    app.add_middleware(RequestMiddleware)
    return app
