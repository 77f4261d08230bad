"""Scripts of web pages may ask from the origins that the operator names, and from no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remix_runtime.errors import ConfigError
from server.settings import load_settings
from tests.unit.server.harness import Server, serving

ORIGIN, OTHER = "https://app.example", "https://evil.example"
KEY = "sesame-open"
ALLOWED = "access-control-allow-origin"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    origins = (ORIGIN, "http://localhost:3000")
    async with serving(tmp_path, api_key=KEY, cors_origin=origins) as running:
        yield running


def preflight(origin: str, method: str = "POST") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
async def test_a_preflight_needs_no_key(server: Server, origin: str) -> None:
    answer = await server.client.options("/v1/chat/completions", headers=preflight(origin))
    assert answer.status_code == 200
    assert answer.headers[ALLOWED] == origin
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        *(preflight(origin) for origin in (OTHER, f"{ORIGIN}.evil.example", "null", "*", "")),
        preflight("http://app.example"),
        preflight(ORIGIN, method="PUT"),
    ],
    ids=str,
)
async def test_other_preflights_are_refused(server: Server, headers: dict[str, str]) -> None:
    answer = await server.client.options("/v1/chat/completions", headers=headers)
    assert answer.status_code == 400
    assert "--cors-origin" in answer.json()["error"]["message"]
    assert answer.headers.get(ALLOWED) in (None, ORIGIN)
    assert headers["Origin"] == ORIGIN or ALLOWED not in answer.headers


async def test_an_options_request_that_is_no_preflight_needs_a_key(server: Server) -> None:
    for headers in ({}, {"Origin": ORIGIN}):
        assert (await server.client.options("/v1/models", headers=headers)).status_code == 401


async def test_answers_and_errors_can_be_read(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Origin": ORIGIN}
    answers = [await server.client.get("/v1/models", headers=headers)]
    server.client.headers["Authorization"] = f"Bearer {KEY}"
    answers.append(await server.client.get("/v1/models", headers=headers))
    answers.append(await server.client.get("/nowhere", headers=headers))
    body = {"model": "pirate", "prompt": "a", "stream": True}
    answers.append(await server.client.post("/v1/completions", json=body, headers=headers))
    monkeypatch.setattr(server.services.sets, "targets", None)
    answers.append(await server.client.get("/v1/models", headers=headers))
    assert [answer.status_code for answer in answers] == [401, 200, 404, 200, 500]
    for answer in answers:
        assert answer.headers[ALLOWED] == ORIGIN
        assert "Origin" in answer.headers["vary"]
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= {*exposed}
        assert "access-control-allow-credentials" not in answer.headers


async def test_others_get_no_permission(server: Server) -> None:
    for headers in ({}, {"Origin": OTHER}, {"Origin": ORIGIN.upper()}):
        assert ALLOWED not in (await server.client.get("/health", headers=headers)).headers


async def test_by_default_nobody_else_may_ask(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.client.options("/v1/completions", headers=preflight(ORIGIN))
        assert answer.status_code == 405
        answer = await server.client.get("/v1/models", headers={"Origin": ORIGIN})
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_every_origin_but_never_with_credentials(tmp_path: Path) -> None:
    async with serving(tmp_path, cors_origin=("*",)) as server:
        headers = {**preflight(OTHER), "Cookie": "a=b"}
        preflighted = await server.client.options("/v1/completions", headers=headers)
        answer = await server.client.get("/v1/models", headers={"Origin": OTHER, "Cookie": "a=b"})
        for found in (preflighted, answer):
            assert (found.status_code, found.headers[ALLOWED]) == (200, "*")
            assert "access-control-allow-credentials" not in found.headers


def test_origins_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().cors_origin == ()
    monkeypatch.setenv("REMIX_CORS_ORIGIN", f"{ORIGIN}, http://localhost:3000")
    assert load_settings().cors_origin == (ORIGIN, "http://localhost:3000")
    assert load_settings(cors_origin=[]).cors_origin == (ORIGIN, "http://localhost:3000")
    assert load_settings(cors_origin=["*"]).cors_origin == ("*",)


@pytest.mark.parametrize(
    "wrong",
    [
        *("app.example", "https://", "https://app.example/", "https://app.example/a", "null"),
        *("https://App.example", "https://*.example", "https://u@app.example", "https://a b", ""),
    ],
)
def test_what_no_browser_ever_sends_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"cors_origin.*expected"):
        load_settings(cors_origin=[wrong])
