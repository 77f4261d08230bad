"""What one request holds and tells the metrics, and the middleware that ends it."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.live.sets import UnknownModelError
from server.metrics import OTHER
from server.services import Services

ENDPOINTS = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
DISCONNECTED = "disconnected"
_STATE = "remix.request"


@dataclass(slots=True)
class RequestState:
    """Filled in while a request is handled; the metrics read it at the end."""

    tenant: str = ""
    """The tenant that the key belongs to, or `SINGLE_USER`."""
    asked: str | None = None
    """The model that the body names, whether there is one or not."""
    name: str | None = None
    """The model's name, once the tenant's set has resolved it."""
    error: str | None = None
    holds: ExitStack = field(default_factory=ExitStack)
    """Given back after the last byte of the answer, whatever the end is."""


def open_state(scope: MutableMapping[str, Any]) -> RequestState:
    state = RequestState()
    scope[_STATE] = state
    return state


def state_of(scope: MutableMapping[str, Any]) -> RequestState:
    """The request's state; made where nobody counts requests (the admin API)."""
    state: RequestState = scope.setdefault(_STATE, RequestState())
    return state


def label_error(scope: MutableMapping[str, Any], error: str) -> None:
    if _STATE in scope:
        scope[_STATE].error = error


class RequestMiddleware:
    """Gives every request its state, gives back what it held, and counts those of the generating
    endpoints, whatever their end is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = open_state(scope)
        with state.holds:
            endpoint = ENDPOINTS.get(scope["path"])
            if endpoint is None or scope["method"] != "POST":
                await self._app(scope, receive, send)
            else:
                await self._counted(endpoint, state, scope, receive, send)

    async def _counted(
        self, endpoint: str, state: RequestState, scope: Scope, receive: Receive, send: Send
    ) -> None:
        status = DISCONNECTED
        start = monotonic()

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(HTTPStatus(message["status"]).value)
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            services: Services = scope["app"].state.services
            services.metrics.count_request(
                tenant=state.tenant,
                name=_label(services, state),
                endpoint=endpoint,
                status=status,
                error=state.error,
                seconds=monotonic() - start,
            )


def _label(services: Services, state: RequestState) -> str:
    """The name that a request is counted under: its model's, even if it was refused before anybody
    asked for the model, but only if the tenant may use it. So the values are bounded."""
    if state.name is not None:
        return state.name
    if state.asked is None:
        return OTHER
    may_use_base = services.access.quota(state.tenant).may_use_base
    try:
        target = services.sets.resolve(state.tenant, state.asked, may_use_base=may_use_base)
    except UnknownModelError:
        return OTHER
    return target.name
