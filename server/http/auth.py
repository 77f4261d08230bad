"""Refuses requests without a valid key. The probes and, in single-user mode, the page need none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.errors import ApiError, as_api_error
from server.http.request import label_error, state_of

Authenticate = Callable[[Scope, str | None], Awaitable[str | None]]
"""The tenant that a bearer key (None: no key) stands for; None refuses the request. Raises
`RemixError`."""


class KeyMiddleware:
    """Denied by default: what is not in `open_paths` needs a key, unknown paths too."""

    def __init__(
        self, app: ASGIApp, authenticate: Authenticate, open_paths: Collection[str]
    ) -> None:
        self._app = app
        self._authenticate = authenticate
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none
            return
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            error = await self._refusal(scope)
            if error is not None:
                label_error(scope, error.code or error.type)
                await error.response(scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refusal(self, scope: Scope) -> ApiError | None:
        try:
            tenant = await self._authenticate(scope, _key(scope))
        except Exception as error:
            return as_api_error(error)
        if tenant is not None:
            state_of(scope).tenant = tenant
            return None
        return ApiError(
            HTTPStatus.UNAUTHORIZED,
            "No valid API key was given; send it as `Authorization: Bearer <key>` or `x-api-key`.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _key(scope: Scope) -> str | None:
    """The key of a request: a bearer, or Anthropic's `x-api-key`, or both if they are the same."""
    headers = Headers(scope=scope)
    keys = [_bearer(given) for given in headers.getlist("authorization")]
    keys += [given.strip() for given in headers.getlist("x-api-key")]
    # Each header once: of two keys, proxies and we might each believe another one.
    if len(headers.getlist("authorization")) > 1 or len(headers.getlist("x-api-key")) > 1:
        return None
    return keys[0] if len(set(keys)) == 1 else None


def _bearer(given: str) -> str | None:
    scheme, _, key = given.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
