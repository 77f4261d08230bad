"""Answers what nothing else has caught, within the middlewares that every answer passes."""

from __future__ import annotations

import asyncio

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
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a tokenizer in Rust is no `Exception`
            if scope["type"] != "http" or state_of(scope).status is not None:
                raise  # the answer has begun: it can only be cut
            told = error if isinstance(error, Exception) else RuntimeError(repr(error))
            response = await handle_error(Request(scope), told)
            await response(scope, receive, send)
