"""`GET /v1/models` and `GET /v1/models/{model}`."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.api.calls import defaults_of, resolve
from server.api.wire.answers import Model, ModelList
from server.http.errors import ErrorBody
from server.http.request import state_of
from server.live.sets import Target
from server.services import Services, services_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(http: Request) -> ModelList:
    """Lists all that the key may use as `model` of a request: the base model, adapters."""
    services, tenant = services_of(http), state_of(http.scope).tenant
    may_use_base = services.access.quota(tenant).may_use_base
    targets = services.sets.targets(tenant, may_use_base=may_use_base)
    return ModelList(data=[_model(services, tenant, target) for target in targets])


@router.get("/v1/models/{model:path}", responses={404: {"model": ErrorBody}})
async def get_model(model: str, http: Request) -> Model:
    """Shows one model by its name."""
    services, tenant = services_of(http), state_of(http.scope).tenant
    target = resolve(http, model)
    shown = _model(services, tenant, target)
    shown.defaults = (await defaults_of(services, target)).given() or None
    return shown


def _model(services: Services, tenant: str, target: Target) -> Model:
    sets = services.sets
    return Model(
        id=target.name,
        created=sets.started if target.digest is None else sets.live(tenant).since,
        root=target.digest or sets.base_name,
        parent=None if target.digest is None else sets.base_name,
        max_model_len=services.engine.model.max_model_len,
    )
