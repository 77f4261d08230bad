"""`GET /v1/models` and `GET /v1/models/{model}`."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.registry import Target
from server.schemas.responses import ErrorBody, Model, ModelList
from server.state import Services, services_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(http: Request) -> ModelList:
    """The base model and the adapters, all of them valid as `model` of a request."""
    services = services_of(http)
    return ModelList(data=[_model(services, target) for target in services.registry.targets])


@router.get("/v1/models/{model:path}", responses={404: {"model": ErrorBody}})
async def get_model(model: str, http: Request) -> Model:
    """One model by its name."""
    services = services_of(http)
    return _model(services, services.registry.resolve(model))


def _model(services: Services, target: Target) -> Model:
    registry = services.registry
    return Model(
        id=target.name,
        created=registry.created,
        root=target.digest or registry.base_name,
        parent=None if target.digest is None else registry.base_name,
        max_model_len=services.engine.model.max_model_len,
    )
