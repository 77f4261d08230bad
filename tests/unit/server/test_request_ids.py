"""Every answer names its request: by the client's id, or by a fresh one."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import httpx
import pytest

from server.http.logs import configure_logging
from tests.unit.admin.harness import administering
from tests.unit.server.harness import Server, serving

ID = "x-request-id"


def requests(client: httpx.AsyncClient) -> list[httpx.Request]:
    """A good answer, a stream, and an error of each place where errors come from."""
    completion = {"model": "pirate", "prompt": "a", "max_tokens": 3}
    post = {"method": "POST", "url": "/v1/completions"}
    return [
        client.build_request(**post, json=completion),
        client.build_request(**post, json={**completion, "stream": True}),
        client.build_request(**post, json={**completion, "model": "nobody"}),
        client.build_request(**post, json={**completion, "temperature": 9}),
        client.build_request(**post, content=b"{"),
        client.build_request("GET", "/v1/models"),
        client.build_request("HEAD", "/health"),
        client.build_request("GET", "/v1/completions"),
        client.build_request("GET", "/nowhere"),
        client.build_request("GET", "/metrics"),
    ]


@pytest.mark.parametrize("key", [None, "sesame-open"])
async def test_a_clients_id_comes_back(tmp_path: Path, key: str | None) -> None:
    """With a key that none of these requests has, too: all are refused."""
    async with serving(tmp_path, api_key=key) as server:
        for number, request in enumerate(requests(server.client)):
            request.headers[ID] = f"req-{number}/a:b"
            answer = await server.client.send(request)
            assert answer.headers.get_list(ID) == [f"req-{number}/a:b"], request.url
            assert key is None or answer.status_code in (401, 200)


async def test_without_an_id_each_request_gets_its_own(server: Server) -> None:
    answers = [await server.client.send(request) for request in requests(server.client)]
    ids = [answer.headers[ID] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(len(request_id) >= 16 and request_id.isalnum() for request_id in ids)


@pytest.mark.parametrize("given", [b"", b" ", b"a b", b"\xff", b"a\x1bb", b"a\tb", b"x" * 129])
async def test_an_id_that_is_none_is_replaced(server: Server, given: bytes) -> None:
    answer = await server.client.get("/health", headers={ID: given})
    assert answer.headers[ID].isalnum()
    assert answer.headers[ID] != given.decode("latin-1")


async def test_two_ids_are_none(server: Server) -> None:
    answer = await server.client.get("/health", headers=[(ID, "a"), (ID, "b")])
    assert answer.headers[ID] not in ("a", "b", "a, b")


async def test_an_unexpected_failure_has_its_id(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of the generating routes too, where Starlette's own net would catch it."""
    monkeypatch.setattr(server.services.sets, "targets", None)
    answer = await server.client.get("/v1/models", headers={ID: "mine"})
    assert (answer.status_code, answer.headers[ID]) == (500, "mine")
    assert answer.json()["error"]["code"] == "internal_error"


async def test_the_admin_api(tmp_path: Path) -> None:
    async with administering(tmp_path) as admin:
        for path in ("/admin/v1/tenants", "/admin/v1/tenants/nobody", "/nowhere"):
            answer = await admin.client.get(path, headers={ID: "mine"})
            assert answer.headers[ID] == "mine"
            assert (await admin.client.get(path)).headers[ID].isalnum()
        del admin.client.headers["Authorization"]
        answer = await admin.client.get("/admin/v1/tenants", headers={ID: "mine"})
        assert (answer.status_code, answer.headers[ID]) == (401, "mine")


@contextmanager
def written() -> Iterator[io.StringIO]:
    """What `remix serve` would write to stderr."""
    root, lines = logging.getLogger(), io.StringIO()
    before, root.handlers = root.handlers, []
    levels = {name: logging.getLogger(name).level for name in ("server", "remix_runtime")}
    try:
        configure_logging("info")
        with redirect_stderr(lines):
            yield lines
    finally:
        root.handlers = before
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


async def test_log_lines_name_their_request(server: Server) -> None:
    with written() as lines:
        await server.client.get("/v1/models", headers={ID: "another"})
        server.engine.fail_next_after = 0
        body = {"model": "pirate", "prompt": "a", "max_tokens": 3}
        await server.client.post("/v1/completions", json=body, headers={ID: "mine"})
        logging.getLogger("server.test").info("of no request")
        logging.getLogger("of.a.library").info("not shown")
    found = lines.getvalue().splitlines()
    (line,) = [line for line in found if "request failed" in line]
    assert line.startswith("ERROR: server.")
    assert ": [mine] " in line
    assert found[-1] == "INFO: server.test: of no request"
