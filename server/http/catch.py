"""Answers what nothing else has caught, within the middlewares that every answer passes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.errors import handle_error
from server.http.request import state_of


class CatchMiddleware:
    """Starlette answers an unexpected exception outside of all middlewares: without the request's
    id, and without the headers that let a browser's script read the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http" or state_of(scope).status is not None:
                raise  # the answer has begun: it can only be cut
            response = await handle_error(Request(scope), error)
            await response(scope, receive, send)
