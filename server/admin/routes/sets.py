"""A tenant's adapter set: its names and digests, replaced as a whole."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import Query, Request, Response

from server.admin import schemas
from server.admin.documentation import failures, set_failures, with_etag
from server.admin.pages import page
from server.admin.preconditions import ExpectedRevision, etag
from server.admin.routing import admin_router
from server.admin.services import ACTOR, admin_services
from server.tenancy.records import SetRevision

router = admin_router("/admin/v1/tenants/{tenant}/set")


@router.get("", responses={200: with_etag("The newest revision."), **failures(404)})
async def get_set(tenant: str, http: Request, answer: Response) -> schemas.AdapterSet:
    """Shows the tenant's newest set, and the revision that this server has live."""
    services = admin_services(http)
    newest = await services.directory.current_set(tenant)
    answer.headers.update(etag(newest.revision))
    live = services.sets.live(tenant).revision
    return schemas.AdapterSet(**asdict(newest), live_revision=live)


@router.put("", responses={200: with_etag("The diff."), **set_failures()})
async def put_set(
    tenant: str,
    body: schemas.PutSet,
    http: Request,
    answer: Response,
    expected: ExpectedRevision,
    dry_run: Annotated[
        bool, Query(description="Load and check everything, tell the diff, change nothing.")
    ] = False,
) -> schemas.Swap:
    """Makes these adapters the tenant's whole set, all or none of them, on this server before it
    answers. Requests in flight finish on the adapter that they started with. The same set again
    changes nothing and succeeds, whatever If-Match says: repeat it after a lost answer."""
    result = await admin_services(http).swaps.put(
        tenant, body.adapters, expected=expected, actor=ACTOR, dry_run=dry_run
    )
    answer.headers.update(etag(result.after.revision))
    return schemas.Swap.model_validate(result)


@router.get("/revisions", response_model=schemas.Listed[SetRevision], responses=failures(400, 404))
async def list_revisions(
    tenant: str,
    http: Request,
    limit: Annotated[int, Query(ge=1, le=schemas.MAX_REVISIONS)] = 20,
    before: Annotated[
        int | None, Query(ge=1, lt=1 << 31, description="Only revisions older than this one.")
    ] = None,
) -> Response:
    """Lists the revisions, newest first; `before` of the next page is the last one's number."""
    directory = admin_services(http).directory
    return await page(
        SetRevision,
        limit,
        lambda most: directory.revisions(tenant, limit=most, before=before),
    )


@router.post("/rollback", responses={200: with_etag("The diff."), **set_failures()})
async def roll_back_set(
    tenant: str,
    body: schemas.RollBack,
    http: Request,
    answer: Response,
    expected: ExpectedRevision,
) -> schemas.Swap:
    """Makes the adapters of an older revision the set again, under the rules of PUT."""
    swaps = admin_services(http).swaps
    result = await swaps.rollback(tenant, body.revision, expected=expected, actor=ACTOR)
    answer.headers.update(etag(result.after.revision))
    return schemas.Swap.model_validate(result)
