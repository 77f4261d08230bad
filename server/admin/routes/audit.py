"""Who changed what, and when."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from server.admin import schemas
from server.admin.documentation import failures
from server.admin.pages import page
from server.admin.routing import admin_router
from server.admin.services import admin_services
from server.tenancy.records import AuditRow

router = admin_router()


@router.get("/audit", response_model=schemas.Listed[AuditRow], responses=failures(400))
async def list_audit(
    http: Request,
    tenant: Annotated[
        schemas.Name | None, Query(description="Only this one's, deleted or not.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=schemas.MAX_REVISIONS)] = 100,
    before: Annotated[
        int | None, Query(ge=1, lt=1 << 63, description="Only rows older than this id.")
    ] = None,
) -> Response:
    """Lists the changes, newest first; `before` of the next page is the last one's id."""
    directory = admin_services(http).directory
    return await page(
        AuditRow, limit, lambda most: directory.audit(tenant=tenant, limit=most, before=before)
    )
