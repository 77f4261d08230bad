"""What this server is."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import Request

from server.admin import schemas
from server.admin.documentation import failures
from server.admin.routing import admin_router
from server.admin.services import admin_services

router = admin_router()


@router.get("/server", responses=failures())
async def get_server(http: Request) -> schemas.Server:
    """The base model that adapters are served on, and the release."""
    model = admin_services(http).engine.model
    return schemas.Server(
        version=version("remix-serve"),
        base=model.name,
        base_fingerprint=model.fingerprint,
        max_model_len=model.max_model_len,
    )
