"""Asks a tenant's models as the tenant: what the dashboard's playground does."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from server.admin.documentation import Responses, failures
from server.admin.routing import admin_router
from server.admin.services import admin_services
from server.http.body import StrictRoute
from server.http.on_behalf import OnBehalf

# Nothing of the directory changes here.
router = admin_router("/admin/v1/tenants/{tenant}", StrictRoute)

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "As for the data API, which has all fields in its own document.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "messages"],
                    "properties": {
                        "model": {"type": "string"},
                        "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
                        "stream": {"type": "boolean"},
                    },
                }
            }
        },
    }
}
_OBJECT: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}


def _answer(description: str, **more: Any) -> Responses:
    return {200: {"description": description, "content": {**_OBJECT, **more}}}


@router.get(
    "/models",
    response_class=Response,
    responses=_answer("OpenAI's list of models.") | failures(404),
)
async def list_tenant_models(tenant: str, http: Request) -> Response:
    """Lists what the tenant may use as `model`: the answer of its own `GET /v1/models`."""
    return await _as_tenant(http, tenant, "/v1/models")


@router.post(
    "/chat/completions",
    response_class=Response,
    responses=_answer("OpenAI's answer.", **{"text/event-stream": {"schema": {"type": "string"}}})
    | failures(404, 429, body=True),
    openapi_extra=_BODY,
)
async def create_tenant_chat_completion(tenant: str, http: Request) -> Response:
    """Answers a chat as the tenant's own `POST /v1/chat/completions` would: with its models, from
    its quota, counted in its metrics. No key of the tenant is needed."""
    return await _as_tenant(http, tenant, "/v1/chat/completions")


async def _as_tenant(http: Request, tenant: str, path: str) -> Response:
    services = admin_services(http)
    found = await services.directory.tenant(tenant)
    return OnBehalf(services.data_app, http, tenant=found.id, path=path)
