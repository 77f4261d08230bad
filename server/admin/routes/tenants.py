"""Tenants and their quotas."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request, Response

from server.admin import schemas
from server.admin.documentation import failures
from server.admin.pages import After, Limit, page
from server.admin.routing import admin_router
from server.admin.services import ACTOR, admin_services
from server.tenancy.records import Quota, Tenant

router = admin_router()


@router.get("/tenants", response_model=schemas.Listed[Tenant], responses=failures(400))
async def list_tenants(
    http: Request, limit: Limit = schemas.MAX_PAGE, after: After = None
) -> Response:
    """Lists tenants by their ids; `after` of the next page is the last one's id."""
    directory = admin_services(http).directory
    return await page(Tenant, limit, lambda most: directory.tenants(limit=most, after=after))


@router.post("/tenants", status_code=HTTPStatus.CREATED, responses=failures(409, body=True))
async def create_tenant(body: schemas.CreateTenant, http: Request) -> Tenant:
    """Makes a tenant with no key, an empty set and the default quota."""
    return await admin_services(http).directory.create_tenant(body.id, actor=ACTOR)


@router.get("/tenants/{tenant}", responses=failures(404))
async def get_tenant(tenant: str, http: Request) -> Tenant:
    """Shows one tenant."""
    return await admin_services(http).directory.tenant(tenant)


@router.delete("/tenants/{tenant}", status_code=HTTPStatus.NO_CONTENT, responses=failures(404))
async def delete_tenant(tenant: str, http: Request) -> None:
    """Deletes a tenant with its keys, quota and set; its audit rows stay."""
    await admin_services(http).directory.delete_tenant(tenant, actor=ACTOR)


@router.get("/tenants/{tenant}/quota", responses=failures(404))
async def get_quota(tenant: str, http: Request) -> schemas.Quota:
    """Shows what the tenant may use."""
    return schemas.Quota.model_validate(await admin_services(http).directory.quota(tenant))


@router.put("/tenants/{tenant}/quota", responses=failures(404, body=True))
async def put_quota(tenant: str, body: schemas.Quota, http: Request) -> schemas.Quota:
    """Replaces the quota; it holds from the next request on."""
    quota = Quota(**body.model_dump())
    await admin_services(http).directory.set_quota(tenant, quota, actor=ACTOR)
    return body
