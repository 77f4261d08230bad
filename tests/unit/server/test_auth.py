"""The API key: every route wants it but the probes, and nothing about it leaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remix_runtime.errors import ConfigError
from server.settings import load_settings
from tests.unit.server.harness import Server, serving
from tests.unit.server.test_bad_input import check_error

KEY = "sesame-open"
OPEN = ("/", "/docs", "/health", "/ping", "/ready")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path, api_key=KEY) as running:
        yield running


def every_path(server: Server) -> list[tuple[str, str]]:
    routes = [
        (method.upper(), path.replace("{model}", "fake-base"))
        for path, methods in server.app.openapi()["paths"].items()
        for method in (*methods, "options", "head")
    ]
    paths = {(method, path) for method, path in routes if path not in OPEN}
    slashed = {(method, f"{path}/") for method, path in routes if path != "/"}
    doubled = {(method, f"/{path}") for method, path in routes if path != "/"}
    return sorted(paths | slashed | doubled | {("GET", "/openapi.json"), ("GET", "/nowhere")})


async def test_every_route_is_closed(server: Server) -> None:
    paths = every_path(server)
    assert ("POST", "/v1/chat/completions") in paths
    assert ("GET", "/metrics") in paths
    assert ("GET", "/health/") in paths
    for method, path in paths:
        response = await server.client.request(method, f"http://test{path}")
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"] == "Bearer"


async def test_probes_and_the_static_pages_are_open(server: Server) -> None:
    for path in OPEN:
        assert (await server.client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        *("", "Bearer", "Bearer ", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Bearer {KEY.upper()}"),
        *(KEY, f"Basic {KEY}", f"Bearer{KEY}", f"Bearer {KEY} {KEY}", "Bearer \xff\xfe"),
    ],
)
async def test_wrong_keys(server: Server, header: str) -> None:
    headers = {"Authorization": header.encode("latin-1")}
    error = check_error(await server.client.get("/v1/models", headers=headers), 401)
    assert error["code"] == "invalid_api_key"
    assert KEY not in str(error)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_right_key(server: Server, scheme: str) -> None:
    server.client.headers["Authorization"] = f"{scheme} {KEY}"
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        assert (await server.client.get(path)).status_code == 200
    await server.expect_good_request()
    # Refusals are counted, under the label of nobody.
    del server.client.headers["Authorization"]
    await server.complete(model="pirate")
    metrics = await server.client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"})
    labels = 'adapter="other",tenant="",type="invalid_api_key"'
    counted = f"remix_request_errors_total{{{labels}}} 1.0"
    assert counted in metrics.text


@pytest.mark.parametrize("setting", ["api_key", "admin_key"])
@pytest.mark.parametrize(
    "key",
    [
        *("", "sesame\nopen", "schlüsselloch"),
        *("x", "abc", " " * 8),  # easily guessed
        *(f" {KEY}", f"{KEY} ", f"\t{KEY}", f"{KEY}\n"),  # no header says the blank
    ],
)
def test_unusable_keys_are_refused(monkeypatch: pytest.MonkeyPatch, key: str, setting: str) -> None:
    # An empty variable must not leave a server open that its owner believes closed.
    variable = f"REMIX_{setting.upper()}"
    monkeypatch.setenv(variable, key)
    told = rf"^{setting} \(environment: {variable}\): expected at least 4 characters"
    with pytest.raises(ConfigError, match=told):
        load_settings()


@pytest.mark.parametrize("key", ["four", KEY, "!" * 200])
async def test_a_key_that_is_taken_opens_the_server(tmp_path: Path, key: str) -> None:
    given = load_settings(api_key=key).api_key
    async with serving(tmp_path, api_key=given) as server:
        for name, value in (("Authorization", f"Bearer {key}"), ("x-api-key", key)):
            answer = await server.client.get("/v1/models", headers={name: value})
            assert answer.status_code == 200


def test_settings_come_from_the_environment_and_options_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REMIX_PORT", "81")
    monkeypatch.setenv("REMIX_DRAIN_SECONDS", "7")
    monkeypatch.setenv("REMIX_API_KEY", KEY)
    settings = load_settings(port=82, drain_seconds=None)
    assert (settings.port, settings.drain_seconds) == (82, 7)
    assert KEY not in repr(settings)
