"""A canary: an adapter that gets a share of the requests for a name of a tenant's set, until it is
promoted or rolled back."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated

from fastapi import Query, Request, Response

from server.admin import schemas
from server.admin.documentation import failures, set_failures
from server.admin.routing import admin_router
from server.admin.services import ACTOR, admin_services
from server.tenancy.canary_rows import Canary, CanaryRules

router = admin_router("/admin/v1/tenants/{tenant}/canary")

# It depends on no revision of the set.
_FAILURES = {status: told for status, told in set_failures(409).items() if status != 412}


@router.get("", responses=failures(400, 404))
async def get_canaries(
    tenant: str,
    http: Request,
    name: Annotated[schemas.Name | None, Query(description="Of this name only.")] = None,
) -> schemas.Listed[schemas.CanaryState]:
    """Shows the newest canary of each name, running or not, with what all servers have seen."""
    shown = await admin_services(http).canaries.shown(tenant)
    data = [_state(canary, waits_for) for canary, waits_for in shown]
    return schemas.Listed(data=[item for item in data if name in (None, item.name)])


@router.put(
    "",
    status_code=HTTPStatus.CREATED,
    responses={
        200: {"description": "It runs already, or it is a dry run.", "model": schemas.CanaryState},
        **_FAILURES,
    },
)
async def put_canary(
    tenant: str,
    body: schemas.PutCanary,
    http: Request,
    answer: Response,
    dry_run: Annotated[
        bool, Query(description="Load and check everything, change nothing.")
    ] = False,
) -> schemas.CanaryState:
    """Gives an adapter a share of the requests for a name. It is loaded and checked first. The same
    canary again changes nothing and succeeds: repeat it after a lost answer."""
    given = body.model_dump(exclude={"name", "digest", "share"})
    canary, is_new = await admin_services(http).canaries.begin(
        tenant,
        body.name,
        body.digest,
        share=body.share,
        rules=CanaryRules(**given),
        actor=ACTOR,
        dry_run=dry_run,
    )
    if dry_run or not is_new:
        answer.status_code = HTTPStatus.OK
    return _state(canary, "")


@router.delete("", responses=failures(400, 404))
async def delete_canary(
    tenant: str,
    http: Request,
    name: Annotated[schemas.Name, Query(description="The name whose requests it shares.")],
) -> schemas.CanaryState:
    """Rolls a canary back. One that has ended is shown as it is."""
    canary = await admin_services(http).canaries.roll_back(tenant, name, actor=ACTOR)
    return _state(canary, "")


def _state(canary: Canary, waits_for: str) -> schemas.CanaryState:
    fields = asdict(canary)
    del fields["tenant"]
    rules, outcome = fields.pop("rules"), fields.pop("outcome")
    state = "running" if outcome is None else str(outcome)
    return schemas.CanaryState.model_validate(
        {**fields, **rules, "state": state, "waits_for": waits_for}
    )
