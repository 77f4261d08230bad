"""The FastAPI application around one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from remix_runtime.contracts import Engine
from server import errors
from server.auth import ApiKeyMiddleware
from server.metrics import Metrics, MetricsMiddleware
from server.registry import load_registry
from server.routes import chat, completions, dashboard, models, probes
from server.settings import ServerSettings
from server.state import Services


def create_app(engine: Engine, settings: ServerSettings, adapters: Mapping[str, Path]) -> FastAPI:
    """The app; its lifespan starts the engine, loads the adapters and stops the engine.

    `adapters` maps names to checkpoint folders. Entering the lifespan raises `RemixError`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await engine.start()
            registry = await load_registry(engine, adapters)
            digests = {name: info.digest for name, info in registry.adapters.items()}
            metrics = Metrics(engine, registry.base_name, digests)
            app.state.services = Services(settings, engine, registry, metrics)
            yield
        finally:
            await engine.stop()

    app = FastAPI(
        title="remix-serve",
        summary="Many ReMix adapters over one base model, behind OpenAI's API.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    for module in (completions, chat, models, probes, dashboard):
        app.include_router(module.router)
    errors.install(app)
    # The last one added is the outermost: refused keys are counted too.
    if settings.api_key is not None:
        app.add_middleware(ApiKeyMiddleware, api_key=settings.api_key.get_secret_value())
    app.add_middleware(MetricsMiddleware)
    return app
