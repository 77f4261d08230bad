"""Hands a request of the admin API to the data API as a tenant's: no key of the tenant is needed,
and all behind the key is as it is for the tenant itself."""

from __future__ import annotations

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.request import REQUEST_ID_HEADER, state_of, traceparent

_TENANT = "remix.on_behalf_of"
"""In a scope, which nothing that a client sends gets into."""

_CONNECTION = ("type", "asgi", "http_version", "method", "scheme", "client", "server")
_HEADERS = frozenset(
    {
        b"accept",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"user-agent",
    }
)
"""Those that go along: the admin key does not."""


def tenant_on_behalf(scope: Scope) -> str | None:
    """The tenant that this process itself sends a request for; None for what came from outside."""
    tenant: str | None = scope.get(_TENANT)
    return tenant


class OnBehalf(Response):
    """The answer of `app` at `path` to the request that `http` began, whose body nobody has read,
    as one of `tenant`: it is counted, limited and logged as the tenant's, under the same id. Its
    span is a child of the other one's."""

    def __init__(self, app: ASGIApp, http: Request, *, tenant: str, path: str) -> None:
        super().__init__()
        self._app = app
        state = state_of(http.scope)
        headers = [(name, value) for name, value in http.scope["headers"] if name in _HEADERS]
        own = {"host": "localhost", REQUEST_ID_HEADER: state.request_id}
        if state.span is not None:
            own["traceparent"] = traceparent(state.span)
        headers += [(name.encode(), value.encode()) for name, value in own.items()]
        self._scope: Scope = {
            **{name: http.scope[name] for name in _CONNECTION if name in http.scope},
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            _TENANT: tenant,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                kept = [pair for pair in headers if pair[0] != REQUEST_ID_HEADER.encode()]
                message = {**message, "headers": kept}
            await send(message)

        await self._app(self._scope, receive, send_without_id)
