"""One API key for the whole server; every path wants it but the probes and the static page."""

from __future__ import annotations

import hmac
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError
from server.state import label_error

OPEN_PATHS = frozenset({"/", "/health", "/ready"})


class ApiKeyMiddleware:
    """Denied by default: what is not in `OPEN_PATHS` needs the key, unknown paths too."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._api_key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._authorized(scope):
            await self._app(scope, receive, send)
            return
        label_error(scope, "invalid_api_key")
        error = ApiError(
            HTTPStatus.UNAUTHORIZED,
            "No valid API key was given; send it as `Authorization: Bearer <key>`.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _authorized(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        # Header text is latin-1; the comparison takes the same time wherever the keys differ.
        given = key.strip().encode("latin-1")
        return hmac.compare_digest(given, self._api_key) and scheme.lower() == "bearer"
