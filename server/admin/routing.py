"""The routers of the admin API: the key in the document, and what follows every change."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response, Security
from fastapi.security import HTTPBearer

from server.admin.services import admin_services
from server.http.body import StrictRoute

_ADMIN_KEY = HTTPBearer(
    scheme_name="adminKey",
    description="REMIX_ADMIN_KEY of the server.",
    auto_error=False,  # the middleware has checked it, for unknown paths too
)


class AdminRoute(StrictRoute):
    """A route after whose changes this server's copy of the directory is refreshed, before the
    answer: a key that was just made is good, a quota that was just set holds. An import that is
    told line by line ends after that; the copy holds no adapters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.methods == {"GET"}:
            return handler

        async def changing_handler(request: Request) -> Response:
            response = await handler(request)
            await admin_services(request).follower.refresh()
            return response

        return changing_handler


def admin_router(
    prefix: str = "/admin/v1", route_class: type[StrictRoute] = AdminRoute
) -> APIRouter:
    return APIRouter(prefix=prefix, route_class=route_class, dependencies=[Security(_ADMIN_KEY)])
