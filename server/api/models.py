"""`GET /v1/models` and `GET /v1/models/{model}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request

from remix_runtime.errors import InvalidRequestError
from server.api.calls import defaults_of, resolve
from server.api.wire.answers import Model, ModelList
from server.http.errors import ErrorBody
from server.http.request import state_of
from server.live.sets import Target
from server.services import Services, services_of

router = APIRouter()

MAX_PAGE = 1000

Limit = Annotated[
    int | None,
    Query(ge=1, le=MAX_PAGE, description="The most models of the answer; without it, all."),
]
AfterId = Annotated[str | None, Query(description="Only models behind this one.")]
BeforeId = Annotated[
    str | None, Query(description="Only models before this one, the last of them.")
]


@router.get("/v1/models", responses={400: {"model": ErrorBody}})
async def list_models(
    http: Request, limit: Limit = None, after_id: AfterId = None, before_id: BeforeId = None
) -> ModelList:
    """Lists all that the key may use as `model` of a request: the base model, adapters. In pages
    where `limit`, `after_id` or `before_id` ask for them, as Anthropic's API has them."""
    services, tenant = services_of(http), state_of(http.scope).tenant
    may_use_base = services.access.quota(tenant).may_use_base
    targets = services.sets.targets(tenant, may_use_base=may_use_base)
    if after_id is not None and before_id is not None:
        raise InvalidRequestError("before_id: not together with after_id", param="before_id")
    if before_id is not None:
        wanted = targets[: _position(targets, before_id, "before_id")]
        shown = wanted if limit is None else wanted[-limit:]
    else:
        wanted = targets
        if after_id is not None:
            wanted = targets[_position(targets, after_id, "after_id") + 1 :]
        shown = wanted[:limit]
    models = [_model(services, tenant, target) for target in shown]
    return ModelList(data=models, has_more=len(shown) < len(wanted))


@router.get("/v1/models/{model:path}", responses={404: {"model": ErrorBody}})
async def get_model(model: str, http: Request) -> Model:
    """Shows one model by its name."""
    services, tenant = services_of(http), state_of(http.scope).tenant
    target = resolve(http, model)
    shown = _model(services, tenant, target)
    shown.defaults = (await defaults_of(services, target)).given() or None
    return shown


def _position(targets: Sequence[Target], name: str, param: str) -> int:
    """Raises `InvalidRequestError`."""
    for position, target in enumerate(targets):
        if target.name == name:
            return position
    raise InvalidRequestError(f"{param}: no model {name[:100]!r} is in the list", param=param)


def _model(services: Services, tenant: str, target: Target) -> Model:
    sets = services.sets
    return Model(
        id=target.name,
        created=sets.started if target.digest is None else sets.live(tenant).since,
        root=target.digest or sets.base_name,
        parent=None if target.digest is None else sets.base_name,
        max_model_len=services.engine.model.max_model_len,
    )
