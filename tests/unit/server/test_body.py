"""How a body is read, on an app with nothing else: its type, its size, its JSON, its turn in the
thread, and the room that it holds until the answer ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from pydantic import AfterValidator, BaseModel, ConfigDict
from starlette.types import Message, Receive, Scope, Send

from remix_runtime.errors import EngineBusyError
from server.http import errors
from server.http.body import SMALL_BODY_BYTES, StrictRoute, run_if_large
from server.http.request import RequestState, open_state, state_of
from server.http.weight import MAX_CONTAINERS, MAX_OWN_MEMBERS
from server.live.bodies import Bodies

LIMIT = 200_000
TENANT = "acme"
JSON = {"content-type": "application/json"}


@dataclass
class Worker:
    """The thread for large bodies; it notes whose turn it was, and refuses if it is full."""

    tenants: list[str] = field(default_factory=list)
    is_full: bool = False
    is_working: bool = False

    async def run(self, tenant: str, function: Callable[[], Any]) -> Any:
        if self.is_full:
            raise EngineBusyError("the queue is full")
        self.tenants.append(tenant)
        self.is_working = True
        try:
            return function()
        finally:
            self.is_working = False


WORKER = Worker()


def in_turn(value: str) -> str:
    """Where the field was checked."""
    return f"{value}, in the thread" if WORKER.is_working else value


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Annotated[str, AfterValidator(in_turn)] = "none"
    numbers: list[float] = []
    text: str = ""


def told(model: str, *, numbers: list[float]) -> list[Any]:
    return [in_turn(model), numbers]


def routes() -> APIRouter:
    router = APIRouter(route_class=StrictRoute)

    @router.post("/checked")
    async def checked(body: Body, http: Request) -> dict[str, Any]:
        held: Bodies = http.app.state.services.bodies
        where = await run_if_large(http, told, body.model, numbers=body.numbers)
        return {"where": where, "held": dict(held._held)}

    @router.post("/raw")
    async def raw(http: Request) -> Any:
        return {"body": await http.json()}

    @router.post("/fails")
    async def fails(body: Body) -> None:
        raise ZeroDivisionError

    return router


class Outside:
    """What is outside of an app: every request has a state, of a tenant, that ends with it."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self.states: list[RequestState] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = open_state(scope)
        state.tenant = TENANT
        self.states.append(state)
        with state.holds:
            await self._app(scope, receive, send)


@dataclass
class Server:
    outside: Outside
    bodies: Bodies
    worker: Worker
    client: httpx.AsyncClient

    async def post(self, content: Any, path: str = "/checked", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.client.post(path, content=content, headers={**JSON, **named})
        assert self.bodies._held == {}, "the room is given back whatever the end is"
        return answer

    async def refused(
        self, content: Any, status: int, path: str = "/checked", **headers: str
    ) -> Any:
        answer = await self.post(content, path, **headers)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        return error["code"], error["message"]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    WORKER.tenants, WORKER.is_full = [], False
    app = FastAPI()
    bodies = Bodies(10 * LIMIT)
    settings = SimpleNamespace(max_body_bytes=LIMIT)
    app.state.services = SimpleNamespace(settings=settings, bodies=bodies, worker=WORKER)
    app.include_router(routes())
    errors.install(app)
    outside = Outside(app)
    transport = httpx.ASGITransport(outside, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Server(outside, bodies, WORKER, client)


def of_size(num_bytes: int, start: bytes = b'{"model": "m", "text": "') -> bytes:
    """A good body of so many bytes."""
    return start + b"x" * (num_bytes - len(start) - 2) + b'"}'


async def in_parts(body: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("size", [100, SMALL_BODY_BYTES, SMALL_BODY_BYTES + 1, LIMIT])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_up_to_the_limit_is_taken_and_a_large_one_has_its_turn(
    server: Server, size: int, announced: bool
) -> None:
    body = of_size(size)
    answer = (await server.post(body if announced else in_parts(body))).json()
    where = "m" + ", in the thread" * 2 * (size > SMALL_BODY_BYTES)
    assert answer == {"where": [where, []], "held": {TENANT: size}}
    # Its JSON is checked in one turn, and worked with in another.
    assert server.worker.tenants == [TENANT] * 2 * (size > SMALL_BODY_BYTES)
    (state,) = server.outside.states
    assert (state.body_bytes, state.asked) == (size, "m")


async def test_arguments_reach_what_runs_for_a_large_body(server: Server) -> None:
    for size in (100, SMALL_BODY_BYTES + 1):
        body = of_size(size, b'{"numbers": [1, 2], "text": "')
        assert (await server.post(body)).json()["where"][1] == [1, 2]


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused_before_it_is_read(
    server: Server, announced: bool
) -> None:
    read = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal read
        async for part in in_parts(of_size(LIMIT + 1)):
            read += len(part)
            yield part

    length = {"content_length": str(LIMIT + 1)} if announced else {}
    assert await server.refused(counted(), 413, **length) == (
        "body_too_large",
        f"the request body is larger than {LIMIT} bytes",
    )
    assert read == (0 if announced else LIMIT + 1)


async def test_a_length_of_any_number_of_digits_is_read(server: Server) -> None:
    code, _ = await server.refused(in_parts(b"{}"), 413, content_length="9" * 5000)
    assert code == "body_too_large"


@pytest.mark.parametrize(
    "content_type", ["application/json", " Application/JSON ; charset=utf-8; x=y"]
)
async def test_the_content_type_is_json(server: Server, content_type: str) -> None:
    assert (await server.post(b"{}", content_type=content_type)).status_code == 200


@pytest.mark.parametrize(
    ("found", "shown"), [("text/plain", "text/plain"), ("y" * 150, "y" * 100), ("", "")]
)
async def test_another_content_type_is_told(server: Server, found: str, shown: str) -> None:
    assert await server.refused(b"{}", 415, content_type=found) == (
        "unsupported_media_type",
        f"Content-Type: found '{shown}', expected 'application/json'",
    )


async def test_no_content_type_is_told_as_empty(server: Server) -> None:
    answer = await server.client.post("/checked", content=b"{}")
    assert answer.status_code == 415
    assert "found ''" in answer.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["identity", " Identity "])
async def test_a_body_that_says_it_is_not_compressed_is_taken(
    server: Server, encoding: str
) -> None:
    assert (await server.post(b"{}", content_encoding=encoding)).status_code == 200


@pytest.mark.parametrize(
    ("body", "encoding", "found"),
    [
        (b"{}", "GZIP", "Content-Encoding: found 'gzip'"),
        (b"{}", "z" * 150, f"Content-Encoding: found '{'z' * 100}'"),
        (b"\x1f\x8b...", "identity", "found a gzip file"),
    ],
)
async def test_a_compressed_body_is_refused(
    server: Server, body: bytes, encoding: str, found: str
) -> None:
    answer = await server.post(body, content_encoding=encoding)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    error = answer.json()["error"]
    assert error["code"] == "unsupported_media_type"
    assert error["message"] == (
        f"{found}, expected a body that is not compressed; send the JSON as it is"
    )


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
async def test_json_is_read_by_the_letter(server: Server, number: str, is_large: bool) -> None:
    body = b'{"x": [%s]%s}' % (number.encode(), b" " * SMALL_BODY_BYTES * is_large)
    code, message = await server.refused(body, 400, "/raw")
    assert code == "invalid_json"
    assert message.startswith("the body is not valid JSON: ")


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize(
    ("body", "asked"), [(b'{"model": "m"}', "m"), (b'{"model": 3}', None), (b'["model"]', None)]
)
async def test_the_model_that_is_asked_for_is_noted_whatever_the_body_is(
    server: Server, body: bytes, asked: str | None, is_large: bool
) -> None:
    answer = await server.post(body + b" " * SMALL_BODY_BYTES * is_large, "/raw")
    assert answer.status_code == 200
    assert answer.content == b'{"body":' + body.replace(b": ", b":") + b"}"
    assert server.outside.states[0].asked == asked
    assert server.worker.tenants == [TENANT] * is_large


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_mistake_is_told_by_its_field_wherever_it_is_found(
    server: Server, is_large: bool
) -> None:
    body = b'{"numbers": [1, "x", "y"]}' + b" " * SMALL_BODY_BYTES * is_large
    answer = await server.post(body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "numbers[1]"


async def test_what_a_large_body_may_have_is_bounded(server: Server) -> None:
    lists = b'{"x": [' + b",".join([b"[]"] * MAX_CONTAINERS) + b"]}"
    members = b",".join(b'"%d": 1' % number for number in range(MAX_OWN_MEMBERS + 1))
    for body in (lists, b"{%s}" % members):
        assert SMALL_BODY_BYTES < len(body) <= LIMIT
        code, _ = await server.refused(body, 400)
        assert code == "body_too_complex"


@pytest.mark.parametrize("path", ["/checked", "/raw"])
async def test_no_turn_for_a_large_body_is_a_503(server: Server, path: str) -> None:
    server.worker.is_full = True
    code, message = await server.refused(of_size(SMALL_BODY_BYTES + 1), 503, path)
    assert (code, message) == ("busy", "the queue is full")
    assert (await server.post(of_size(100), path)).status_code == 200


async def test_no_room_for_a_body_is_a_503(server: Server) -> None:
    server.bodies._held["another"] = 9 * LIMIT
    answer = await server.client.post("/checked", content=of_size(LIMIT), headers=JSON)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    error = answer.json()["error"]
    assert error["code"] == "busy"
    assert error["message"] == "too many bytes of requests wait for their answers"
    assert server.bodies._held == {"another": 9 * LIMIT}


async def test_a_part_that_finds_no_room_gives_the_others_back(server: Server) -> None:
    server.bodies._held["another"] = 10 * LIMIT - 5000
    content = in_parts(of_size(LIMIT))
    answer = await server.client.post("/checked", content=content, headers=JSON)
    assert answer.status_code == 503
    assert server.bodies._held == {"another": 10 * LIMIT - 5000}


async def test_a_failure_behind_it_is_a_500(server: Server) -> None:
    code, _ = await server.refused(b"{}", 500, "/fails")
    assert code == "internal_error"


async def test_a_client_that_leaves_while_it_sends_gets_nothing(server: Server) -> None:
    parts: list[Message] = [
        {"type": "http.request", "body": b'{"model"', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0)
        return parts.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/checked",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await server.outside(scope, receive, send)
    assert (sent, server.bodies._held) == ([], {})
    assert state_of(scope).error == "client_disconnected"
