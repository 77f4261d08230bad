"""API keys of tenants."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request, Response

from server.admin import schemas
from server.admin.documentation import failures
from server.admin.pages import After, Limit, page
from server.admin.routing import admin_router
from server.admin.services import ACTOR, admin_services
from server.tenancy.errors import UnknownKeyError
from server.tenancy.records import KeyInfo, NewKey

router = admin_router("/admin/v1/tenants/{tenant}")


@router.get("/keys", response_model=schemas.Listed[KeyInfo], responses=failures(400, 404))
async def list_keys(
    tenant: str, http: Request, limit: Limit = schemas.MAX_PAGE, after: After = None
) -> Response:
    """Lists a tenant's keys without their secrets, oldest first, revoked ones too; `after` of the
    next page is the last one's id."""
    directory = admin_services(http).directory
    return await page(KeyInfo, limit, lambda most: directory.keys(tenant, limit=most, after=after))


@router.post("/keys", status_code=HTTPStatus.CREATED, responses=failures(404))
async def create_key(tenant: str, http: Request) -> NewKey:
    """Makes a key. Only this answer ever has its secret."""
    return await admin_services(http).directory.create_key(tenant, actor=ACTOR)


@router.delete("/keys/{key_id}", status_code=HTTPStatus.NO_CONTENT, responses=failures(404))
async def revoke_key(tenant: str, key_id: str, http: Request) -> None:
    """Revokes a key. Every server refuses it within its poll interval. Revoking again is fine."""
    directory = admin_services(http).directory
    if all(key.id != key_id for key in await directory.keys(tenant)):
        raise UnknownKeyError(key_id)
    await directory.revoke_key(key_id, actor=ACTOR)
