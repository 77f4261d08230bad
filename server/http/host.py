"""Refuses requests that name another host than this server: a web page whose name was made to lead
here (DNS rebinding) could otherwise ask a server without keys, and read its answers."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.errors import ApiError, handle_error
from server.http.request import PROBES


class HostMiddleware:
    """With `names` every request but a probe has to name one of them or a loopback address. Without
    any only those have to that come to a loopback address, and only with `only_loopback`."""

    def __init__(self, app: ASGIApp, names: Collection[str], *, only_loopback: bool) -> None:
        self._app = app
        self._names = frozenset(name.strip("[]") for name in names)
        self._only_loopback = only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_checked(scope) and not self._is_named(scope):
            error = ApiError(
                HTTPStatus.FORBIDDEN,
                "The Host header names no host that this server may be asked by; --allowed-host "
                "NAME (REMIX_ALLOWED_HOST) allows one.",
                code="host_not_allowed",
            )
            response = await handle_error(Request(scope), error)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_checked(self, scope: Scope) -> bool:
        if "*" in self._names or scope["path"] in PROBES:
            return False
        # The address that the connection came to, whatever the name was that led there.
        server = scope.get("server")
        is_local = server is not None and _is_loopback(server[0])
        return bool(self._names) or (self._only_loopback and is_local)

    def _is_named(self, scope: Scope) -> bool:
        given = Headers(scope=scope).getlist("host")
        if len(given) != 1:
            return False
        host = _without_port(given[0].lower())
        return host in self._names or host == "localhost" or _is_loopback(host)


def _without_port(host: str) -> str:
    """The name or address of a Host header; of an IPv6 address what is between the brackets."""
    if host.startswith("["):
        address, closed, port = host[1:].partition("]")
        return address if closed and _is_port(port) else ""
    name, colon, digits = host.partition(":")
    return name if _is_port(colon + digits) else ""


def _is_port(text: str) -> bool:
    return not text or (text[0] == ":" and (text[1:].isdecimal() or not text[1:]))


@lru_cache(maxsize=16)
def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
