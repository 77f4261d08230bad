"""Requests that go to the wrong place or come in the wrong form are told what was meant."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import pytest

from tests.unit.admin.harness import administering
from tests.unit.server.harness import BASE, Server, serving
from tests.unit.server.test_bad_input import check_error


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/models", "/v1/models"),
        ("/models/pirate", "/v1/models/pirate"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/v1/completions", "/v1/completions"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/v1//chat/completions", "/v1/chat/completions"),
        ("//v1/completions", "/v1/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/chat/completions/", "/v1/chat/completions"),
        ("/health/", "/health"),
    ],
)
async def test_a_path_that_is_nearly_right(server: Server, path: str, meant: str) -> None:
    error = check_error(await server.client.post(f"http://test{path}", json={}), 404)
    assert f"There is nothing at {path!r}, expected {meant}." in error["message"]
    assert ("base URL ends in /v1" in error["message"]) == meant.startswith("/v1")


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/nowhere", "/%0a%00", "/" + "x" * 3000])
async def test_a_path_like_no_other(server: Server, path: str) -> None:
    error = check_error(await server.client.get(path), 404)
    assert error["message"].endswith("; the paths are in /openapi.json.")
    assert "base URL" not in error["message"]
    assert error["message"].isprintable()


async def test_nobody_is_told_of_paths_without_a_key(tmp_path: Path) -> None:
    async with serving(tmp_path, api_key="sesame-open") as server:
        error = check_error(await server.client.post("/chat/completions", json={}), 401)
        assert "completions" not in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "taken"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/pirate", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_taken(
    server: Server, method: str, path: str, taken: str
) -> None:
    answer = await server.client.request(method, path)
    error = check_error(answer, 405)
    assert answer.headers["allow"] == taken
    assert f"{method} is not taken at '{path}', expected " in error["message"]


async def test_all_methods_of_a_path_are_told(tmp_path: Path) -> None:
    async with administering(tmp_path) as admin:
        answer = await admin.client.post("/admin/v1/tenants/acme/set", json={})
        assert answer.headers["allow"] == "DELETE, GET, PUT, HEAD"
        wrong = await admin.client.get("/tenants")
        assert "expected /admin/v1/tenants." in wrong.json()["error"]["message"]


async def test_a_browser_of_another_origin_is_told_of_the_option(server: Server) -> None:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    answer = await server.client.options("/v1/chat/completions", headers=headers)
    assert "--cors-origin" in check_error(answer, 405)["message"]


BODY = json.dumps({"model": BASE, "prompt": "a", "max_tokens": 2}).encode()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("GZIP", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("br", b"\x0b\x02\x80"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY, mtime=0), mtime=0)),
        ("zstd", b"(\xb5/\xfd"),
        (None, gzip.compress(BODY, mtime=0)),
        ("identity", gzip.compress(BODY, mtime=0)),
    ],
)
async def test_a_compressed_body(server: Server, encoding: str | None, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    if encoding is not None:
        headers["Content-Encoding"] = encoding
    answer = await server.client.post("/v1/completions", content=body, headers=headers)
    assert "expected a body that is not compressed" in check_error(answer, 415)["message"]
    assert answer.headers["accept-encoding"] == "identity"
    await server.expect_good_request()


async def test_a_body_that_says_it_is_plain(server: Server) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "identity"}
    answer = await server.client.post("/v1/completions", content=BODY, headers=headers)
    assert answer.status_code == 200
