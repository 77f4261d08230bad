"""The key's middleware by itself: which headers give a key, and who gets in with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.http.auth import KeyMiddleware
from server.http.request import open_state, state_of
from server.tenancy.errors import DatabaseUnavailableError

Headers = list[tuple[str, str]]


class App:
    """What is behind the middleware."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "http.request"}
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})


class Door:
    """A middleware whose keys are noted; "sesame" is acme's, "single" that of a single user."""

    def __init__(self, **options: bool) -> None:
        self.app = App()
        self.keys: list[str | None] = []
        self.middleware = KeyMiddleware(self.app, self.authenticate, ["/health"], **options)

    async def authenticate(self, scope: Scope, key: str | None) -> str | None:
        assert scope["path"] == "/v1/models"
        self.keys.append(key)
        if key == "database":
            raise DatabaseUnavailableError("it is away")
        return {"sesame": "acme", "single": ""}.get(key or "")

    async def ask(self, *headers: tuple[str, str], path: str = "/v1/models") -> list[Message]:
        scope = {
            "type": "http",
            "path": path,
            "method": "GET",
            "headers": [(name.encode(), value.encode()) for name, value in headers],
        }
        open_state(scope)
        return await self.run(scope)

    async def run(self, scope: dict[str, Any]) -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.middleware(scope, receive, send)
        return sent


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([("authorization", "Bearer sesame")], "sesame"),
        ([("authorization", "bEARER   sesame  ")], "sesame"),
        ([("authorization", "Bearer two words")], "two words"),
        ([("authorization", "Bearer ")], ""),
        ([("authorization", "sesame")], None),
        ([("authorization", "Basic sesame")], None),
        ([("authorization", "Bearer sesame"), ("authorization", "Bearer sesame")], None),
        ([("x-api-key", " sesame ")], "sesame"),
        ([("x-api-key", "sesame"), ("x-api-key", "sesame")], None),
        ([("x-api-key", "sesame"), ("authorization", "Bearer sesame")], "sesame"),
        ([("x-api-key", "sesame"), ("authorization", "Bearer other")], None),
        ([("x-api-key", "sesame"), ("authorization", "Basic other")], None),
        ([("x-other", "sesame")], None),
        ([], None),
    ],
)
async def test_the_key_of_headers(headers: Headers, key: str | None) -> None:
    door = Door(also_x_api_key=True)
    await door.ask(*headers)
    assert door.keys == [key]
    if all(name == "authorization" for name, _ in headers):
        door = Door()
        await door.ask(*headers, ("x-api-key", "ignored"))
        assert door.keys == [key]


@pytest.mark.parametrize(("key", "tenant"), [("sesame", "acme"), ("single", "")])
async def test_a_right_key_gets_in_as_its_tenant(key: str, tenant: str) -> None:
    door = Door()
    (answer,) = await door.ask(("authorization", f"Bearer {key}"))
    assert answer["status"] == 204
    (scope,) = door.app.scopes
    assert state_of(scope).tenant == tenant


@pytest.mark.parametrize(
    ("options", "or_so"), [({"also_x_api_key": True}, " or `x-api-key`."), ({}, ".")]
)
async def test_a_refusal_says_how_to_send_a_key(options: dict[str, bool], or_so: str) -> None:
    door = Door(**options)
    start, body = await door.ask()
    assert start["status"] == 401
    assert (b"www-authenticate", b"Bearer") in start["headers"]
    assert json.loads(body["body"])["error"] == {
        "message": "No valid API key was given; send it as `Authorization: Bearer <key>`" + or_so,
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert door.app.scopes == []


async def test_a_key_that_cannot_be_confirmed_is_a_503() -> None:
    door = Door()
    start, body = await door.ask(("authorization", "Bearer database"))
    assert start["status"] == 503
    assert json.loads(body["body"])["error"]["code"] == "directory_unavailable"
    assert door.app.scopes == []


async def test_open_paths_need_no_key_and_their_siblings_do() -> None:
    door = Door()
    (answer,) = await door.ask(path="/health")
    assert answer["status"] == 204
    assert door.keys == []
    start, _ = await door.ask()
    assert start["status"] == 401


async def test_other_kinds_of_connections() -> None:
    door = Door()
    assert await door.run({"type": "websocket", "path": "/health"}) == [
        {"type": "websocket.close", "code": 1008}
    ]
    assert door.app.scopes == []
    lifespan = {"type": "lifespan"}
    await door.run(lifespan)
    assert door.app.scopes == [lifespan]
    assert door.keys == []
