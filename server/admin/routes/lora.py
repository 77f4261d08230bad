"""vLLM's endpoints that load and unload one adapter, for tools that speak them.

Each is a change of the tenant's whole set under the hood, so it is remembered, and nothing is
replaced in the middle of a generation. Statuses, error types and texts are those of vLLM 0.32. An
adapter that is there and bad is an exception: 422, since its 500 would ask tools to try again.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import PlainTextResponse

from server.admin import schemas
from server.admin.documentation import Responses, set_failures
from server.admin.imports import import_adapter
from server.admin.routing import admin_router
from server.admin.services import ACTOR, AdminServices, admin_services
from server.http.errors import ApiError
from server.store import SourceMissingError
from server.tenancy.errors import StaleRevisionError

router = admin_router("/v1")

Adapters = dict[str, str]
Tenant = Annotated[
    str | None, Query(description="Whose set; not needed where there is one tenant only.")
]

_TRIES = 100
"""How often a change is tried again that lost its race against another one."""

_DONE: Responses = {
    200: {"description": "Done.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.post(
    "/load_lora_adapter",
    response_class=Response,
    responses=_DONE | set_failures(502, 507),
)
async def load_lora_adapter(
    body: schemas.LoadLora, http: Request, tenant: Tenant = None
) -> Response:
    """Imports the adapter at `lora_path` and adds it to the tenant's set under `lora_name`."""
    services = admin_services(http)
    tenant = tenant or await _only_tenant(services)
    if body.lora_name == services.sets.base_name:
        raise _bad_name(f"The lora adapter '{body.lora_name}' conflicts with a served base model.")

    def check(adapters: Adapters) -> None:
        if body.lora_name in adapters and not body.load_inplace:
            raise _bad_name(
                f"The lora adapter '{body.lora_name}' has already been loaded. If you want to "
                "load the adapter in place, set 'load_inplace' to True."
            )

    # No import for what is refused already.
    check(dict((await services.directory.current_set(tenant)).adapters))
    try:
        record, _ = await import_adapter(services, body.lora_path)
    except SourceMissingError as error:
        message = f"Loading lora {body.lora_name} failed: No adapter found for {body.lora_path}"
        raise _not_found(message, "lora_path") from error

    def add(adapters: Adapters) -> Adapters:
        check(adapters)
        return {**adapters, body.lora_name: record.digest}

    await _change(services, tenant, add)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/unload_lora_adapter", response_class=Response, responses=_DONE | set_failures())
async def unload_lora_adapter(
    body: schemas.UnloadLora, http: Request, tenant: Tenant = None
) -> Response:
    """Takes the adapter out of the tenant's set; requests in flight finish on it."""
    services = admin_services(http)

    def remove(adapters: Adapters) -> Adapters:
        if body.lora_name not in adapters:
            message = f"The lora adapter '{body.lora_name}' cannot be found."
            raise _not_found(message, "lora_name")
        return {name: digest for name, digest in adapters.items() if name != body.lora_name}

    await _change(services, tenant or await _only_tenant(services), remove)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _bad_name(message: str) -> ApiError:
    kind = "InvalidUserInput"
    return ApiError(HTTPStatus.BAD_REQUEST, message, type=kind, param="lora_name")


def _not_found(message: str, param: str) -> ApiError:
    return ApiError(HTTPStatus.NOT_FOUND, message, type="NotFoundError", param=param)


async def _only_tenant(services: AdminServices) -> str:
    tenants = await services.directory.tenants()
    if len(tenants) != 1:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"tenant: there are {len(tenants)} tenants; add ?tenant=NAME to the URL",
            param="tenant",
        )
    return tenants[0].id


async def _change(
    services: AdminServices, tenant: str, change: Callable[[Adapters], Adapters]
) -> None:
    """Makes `change` of the tenant's set by compare-and-set: no change of others is lost."""
    for tries_left in reversed(range(_TRIES)):
        current = await services.directory.current_set(tenant)
        wanted = change(dict(current.adapters))
        try:
            await services.swaps.put(tenant, wanted, expected=current.revision, actor=ACTOR)
            return
        except StaleRevisionError:
            if not tries_left:
                raise
