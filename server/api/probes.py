"""`/health` (should this process live?), `/ready` (should it get requests?), `/metrics`."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.wire.answers import Status
from server.services import services_of

log = logging.getLogger(__name__)
router = APIRouter()

DOWN: dict[int | str, dict[str, Any]] = {503: {"model": Status, "description": "No."}}


@router.get("/health", response_model=Status, responses=DOWN)
async def health(http: Request) -> Response:
    """200 while the engine makes progress; 503 means: replace this process."""
    state = services_of(http).engine.health()
    if not state.alive:
        log.error("not alive: %s", state.reason)
    return _answer(state.alive, "ok" if state.alive else "dead")


@router.get("/ready", response_model=Status, responses=DOWN)
async def ready(http: Request) -> Response:
    """200 while new requests are taken; 503 before start-up, while draining and when dead."""
    services = services_of(http)
    if services.gate.closed:
        return _answer(False, "draining")
    state = services.engine.health()
    return _answer(state.ready, "ready" if state.ready else "not ready")


metrics_router = APIRouter()
"""A router of its own: with tenants, metrics show all of them and belong on the admin port."""


@metrics_router.get("/metrics", response_class=Response)
async def metrics(http: Request) -> Response:
    """Prometheus text format."""
    return Response(services_of(http).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _answer(good: bool, status: str) -> JSONResponse:
    code = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse(Status(status=status).model_dump(), status_code=code)
