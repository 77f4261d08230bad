"""DNS rebinding: a page whose name leads to a loopback address cannot ask a server without keys."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from remix_runtime.errors import ConfigError
from server.settings import load_settings
from tests.unit.server.harness import Server, listening, serving
from tests.unit.server.test_bad_input import check_error

KEY = "sesame-open"
OURS = (
    *("localhost", "LOCALHOST", "localhost:8000", "127.0.0.1", "127.0.0.1:81", "127.1.2.3:8000"),
    *("[::1]", "[::1]:8000", "localhost:"),
)
OTHERS = (
    *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
    *("localhost:evil", "localhost:80:80", "x@localhost", "localhost@evil.example", "[::1", "::1"),
    *("10.0.0.5", "0.0.0.0", "[::]", "localhost,evil.example", "[::1]evil.example", ""),
)
PATHS = ("/", "/docs", "/metrics", "/v1/models", "/openapi.json", "/nowhere")


async def status(server: Server, path: str, host: str | None, **headers: str) -> int:
    request = server.client.build_request("GET", path, headers=headers)
    if host is None:
        del request.headers["Host"]
    else:
        request.headers["Host"] = host
    answer = await server.client.send(request)
    if answer.status_code == 403:
        error = check_error(answer, 403)
        assert error["code"] == "host_not_allowed"
        assert "--allowed-host" in error["message"]
        assert answer.headers["x-request-id"]
    return answer.status_code


def at(server: Server, address: str) -> Server:
    """The server as a connection to this address of it finds it."""
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
    server.client = httpx.AsyncClient(transport=transport, base_url=f"http://{address}:8000")
    return server


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "127.0.0.9"])
async def test_a_server_without_keys_on_a_loopback_address(tmp_path: Path, address: str) -> None:
    async with serving(tmp_path, host=address.strip("[]")) as server:
        at(server, address)
        for host in OURS:
            assert await status(server, "/v1/models", host) == 200, host
        for host in (*OTHERS, None):
            assert await status(server, "/v1/models", host) == 403, host
        for path in PATHS:
            assert await status(server, path, "evil.example") == 403, path
        for path in ("/health", "/ping", "/ready"):
            assert await status(server, path, "evil.example") == 200, path


async def test_a_page_that_was_led_here_learns_and_starts_nothing(tmp_path: Path) -> None:
    """On a real socket, where every client is told the same."""
    async with listening(tmp_path, cors_origin=("https://app.example",)) as server:
        body = {"model": "pirate", "prompt": "a", "max_tokens": 1}
        for method in ("POST", "OPTIONS", "HEAD"):
            answer = await server.client.request(
                method,
                "/v1/completions",
                json=body,
                headers={"Host": "evil.example", "Origin": "http://evil.example"},
            )
            assert answer.status_code == 403
            assert "pirate" not in answer.text
        assert server.engine.requests == []
        assert (await server.client.post("/v1/completions", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("address", "settings"),
    [
        ("127.0.0.1", {"api_key": KEY}),  # a page has no key
        ("127.0.0.1", {"host": "0.0.0.0"}),
        ("127.0.0.1", {"host": "::"}),
        ("10.0.0.5", {"host": "10.0.0.5"}),
        ("127.0.0.1", {"allowed_host": ("*",)}),
    ],
)
async def test_others_are_asked_by_any_name(
    tmp_path: Path, address: str, settings: dict[str, object]
) -> None:
    async with serving(tmp_path, **settings) as server:
        at(server, address)
        found = await status(server, "/v1/models", "any.example", Authorization=f"Bearer {KEY}")
        assert found == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5"])
@pytest.mark.parametrize("key", [None, KEY])
async def test_names_that_are_given_are_checked_everywhere(
    tmp_path: Path, address: str, key: str | None
) -> None:
    names = load_settings(allowed_host=["Models.example", "10.0.0.5", "[FD00::5]"]).allowed_host
    async with serving(tmp_path, host=address, allowed_host=names, api_key=key) as server:
        at(server, address)
        bearer = f"Bearer {KEY}"
        for host in ("models.example", "MODELS.example:80", "10.0.0.5:8000", "[fd00::5]", *OURS):
            assert await status(server, "/v1/models", host, Authorization=bearer) == 200, host
        for host in ("evil.example", "models.example.evil.example", "10.0.0.6", "*", None):
            assert await status(server, "/v1/models", host, Authorization=bearer) == 403, host
        assert await status(server, "/health", "10.0.0.6") == 200


def test_names_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().allowed_host == ()
    monkeypatch.setenv("REMIX_ALLOWED_HOST", "a.example, B.example")
    assert load_settings().allowed_host == ("a.example", "b.example")
    for wrong in ("https://a.example", "a.example:80", "*.example", "a/b", "[::1", "a b@c", ""):
        with pytest.raises(ConfigError, match=r"^allowed_host.*expected"):
            load_settings(allowed_host=[wrong])
