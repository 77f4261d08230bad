"""Refuses requests without a valid key. The probes and, in single-user mode, the page need none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.errors import ApiError, handle_error
from server.http.request import state_of

Authenticate = Callable[[Scope, str | None], Awaitable[str | None]]
"""The tenant that a bearer key (None: no key) stands for; None refuses the request. Raises
`RemixError`."""


class KeyMiddleware:
    """Denied by default: what is not in `open_paths` needs a key, unknown paths too."""

    def __init__(
        self,
        app: ASGIApp,
        authenticate: Authenticate,
        open_paths: Collection[str],
        *,
        also_x_api_key: bool = False,
    ) -> None:
        """`also_x_api_key`: whether Anthropic's header is one too."""
        self._app = app
        self._authenticate = authenticate
        self._open_paths = frozenset(open_paths)
        self._also_x_api_key = also_x_api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none
            return
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            error = await self._refusal(scope)
            if error is not None:
                response = await handle_error(Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Exception | None:
        try:
            tenant = await self._authenticate(scope, self._key(scope))
        except Exception as error:
            return error
        if tenant is not None:
            state_of(scope).tenant = tenant
            return None
        return ApiError(
            HTTPStatus.UNAUTHORIZED,
            "No valid API key was given; send it as `Authorization: Bearer <key>`"
            + (" or `x-api-key`." if self._also_x_api_key else "."),
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _key(self, scope: Scope) -> str | None:
        """The key of a request: a bearer, Anthropic's, or both if they are the same."""
        headers = Headers(scope=scope)
        bearers = headers.getlist("authorization")
        others = headers.getlist("x-api-key") if self._also_x_api_key else []
        # Each header once: of two keys, proxies and we might each believe another one.
        if max(len(bearers), len(others)) > 1:
            return None
        keys = {*map(_bearer, bearers), *(given.strip() for given in others)}
        return keys.pop() if len(keys) == 1 else None


def _bearer(given: str) -> str | None:
    scheme, _, key = given.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
