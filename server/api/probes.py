"""`/health` (should this process live?), `/ready` (should it get requests?), `/metrics`."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.wire.answers import Status
from server.services import Services, services_of

log = logging.getLogger(__name__)
router = APIRouter()

DOWN: dict[int | str, dict[str, Any]] = {503: {"model": Status, "description": "No."}}


@router.get("/health", response_model=Status, responses=DOWN)
async def health(http: Request) -> Response:
    """200 while the engine makes progress; 503 means: replace this process."""
    services = services_of(http)
    state = services.engine.health()
    if not state.alive:
        log.error("not alive: %s", state.reason)
    return _answer(services, state.alive, "ok" if state.alive else "dead")


@router.get("/ready", response_model=Status, responses=DOWN)
async def ready(http: Request) -> Response:
    """200 while new requests are taken; 503 before start-up, while draining, when dead, and while
    no key can be confirmed."""
    services = services_of(http)
    if services.gate.is_leaving:
        return _answer(services, False, "draining")
    if not services.engine.health().ready:
        return _answer(services, False, "not ready")
    if not services.access.knows_keys:
        return _answer(services, False, "keys cannot be confirmed")
    return _answer(services, True, "ready")


metrics_router = APIRouter()
"""A router of its own: with tenants, metrics show all of them and belong on the admin port."""


@metrics_router.get("/metrics", response_class=Response)
async def metrics(http: Request) -> Response:
    """Prometheus text format."""
    return Response(await services_of(http).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _answer(services: Services, good: bool, status: str) -> JSONResponse:
    """The code says whether requests can be served; `failing` also what they do without."""
    code = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    answer = Status(status=status, failing=services.failing)
    return JSONResponse(answer.model_dump(mode="json", exclude_defaults=True), status_code=code)
