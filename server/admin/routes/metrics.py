"""`/metrics`, here because it tells of all tenants."""

from __future__ import annotations

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.admin.documentation import failures
from server.admin.routing import admin_router
from server.admin.services import admin_services

router = admin_router("")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **failures()},
)
async def get_metrics(http: Request) -> Response:
    """Prometheus text format."""
    return Response(await admin_services(http).metrics.text(), media_type=CONTENT_TYPE_LATEST)
