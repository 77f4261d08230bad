"""The FastAPI application of the admin API, on a port and with a key of its own."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.types import Scope

from server.admin import dashboard
from server.admin.routes import (
    about,
    adapters,
    asking,
    audit,
    canaries,
    files,
    keys,
    lora,
    metrics,
    sets,
    tenants,
)
from server.admin.services import ACTOR
from server.http import errors
from server.http.auth import KeyMiddleware
from server.http.catch import CatchMiddleware
from server.http.head import HeadMiddleware
from server.http.openapi import DOCS, correct_document, docs_router
from server.http.request import WITHOUT_TELEMETRY, RequestMiddleware, Spans
from server.live.access import is_key


def create_admin_app(
    admin_key: SecretStr, *, access_log: bool, spans: Spans | None = None
) -> FastAPI:
    """The app; whoever opens the data app's lifespan sets its `state.services`."""

    async def authenticate(scope: Scope, given: str | None) -> str | None:
        return ACTOR if is_key(given, admin_key.get_secret_value()) else None

    app = FastAPI(
        title="remix-serve admin",
        summary="Tenants and their adapter sets.",
        docs_url=None,  # its page loads scripts from elsewhere; ours is another
        redoc_url=None,
        redirect_slashes=False,
        telemetry=WITHOUT_TELEMETRY,
        generate_unique_id_function=_operation_id,
    )
    for module in (
        *(about, tenants, keys, sets, canaries, asking, adapters, files, audit, lora, metrics),
        dashboard,
    ):
        app.include_router(module.router)
    app.include_router(docs_router)
    correct_document(app)
    errors.install(app)
    app.add_middleware(CatchMiddleware)
    # What is the same for everybody, and what a browser could not open: it sends no key by itself.
    open_paths = {*dashboard.PATHS, DOCS}
    app.add_middleware(KeyMiddleware, authenticate=authenticate, open_paths=open_paths)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RequestMiddleware, access_log=access_log, spans=spans)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
