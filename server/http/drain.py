"""What a server that is about to end does with its connections: requests that were there before get
their whole answers, and every answer asks its client to connect anew, which is elsewhere then."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.request import state_of
from server.services import Services


class DrainMiddleware:
    """Counts each request from its head to its last byte, and marks those that come too late."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        services: Services = scope["app"].state.services
        gate = services.gate

        async def closing_send(message: Message) -> None:
            if message["type"] == "http.response.start" and gate.is_leaving:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        state_of(scope).is_late = gate.closed
        with gate.enter():
            await self._app(scope, receive, closing_send)
