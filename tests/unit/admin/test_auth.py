"""Every route and method of the admin API, discovered from the app, wants the admin key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.admin import dashboard
from server.http.openapi import DOCS
from tests.unit.admin.harness import API, KEY, Admin, listening
from tests.unit.server.tenants import all_paths
from tests.unit.server.test_bad_input import check_error

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")


def spellings(path: str) -> Iterator[str]:
    yield from (path, f"{path}/", f"/{path}", f"/.{path}", f"/health/..{path}", f"{path}/..")
    yield from (path.replace("/", "//"), f"{path}?key={KEY}", f"{path};v=1", f"{path}%2F")
    yield from (path.replace("/v1", "/V1", 1), f"/ready/..%2f..{path}", f"{path}%00")
    head, _, tail = path.rpartition("/")
    if head:
        yield f"{head}%2F{tail}"


async def status_of(admin: Admin, method: str, path: str, headers: dict[str, str]) -> int:
    response = await admin.send_by_the_letter(method, path, headers)
    if response.status_code == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert KEY not in response.text
    return response.status_code


def closed_paths(admin: Admin) -> list[str]:
    """All but the dashboard's files and the API's description, which hold no data."""
    return [path for path in all_paths(admin.app) if path not in {*dashboard.PATHS, DOCS}]


@pytest.fixture
async def tenant_key(admin: Admin) -> str:
    """Of a tenant that is there to get at."""
    await admin.add_tenant()
    return await admin.add_key()


async def test_routes_are_found(admin: Admin) -> None:
    paths = all_paths(admin.app)
    assert {"/metrics", "/openapi.json", "/v1/load_lora_adapter", f"{API}/audit"} <= set(paths)
    assert f"{API}/tenants/acme/keys/acme" in paths
    assert len(paths) >= 17


async def test_every_route_and_method_is_closed(admin: Admin, tenant_key: str) -> None:
    paths = [*closed_paths(admin), "/health", "/ready", "/nowhere", "/v1/models"]
    as_tenant = {"Authorization": f"Bearer {tenant_key}"}
    for path in paths:
        for method in METHODS:
            for headers in ({}, as_tenant):
                assert await status_of(admin, method, path, headers) == 401, (method, path)
    tenants = await admin.client.get(f"{API}/tenants")
    assert [item["id"] for item in tenants.json()["data"]] == ["acme"]


async def test_no_spelling_of_a_path_gets_past_the_key(admin: Admin, tenant_key: str) -> None:
    for path in closed_paths(admin):
        for spelling in spellings(path):
            for method in ("GET", "DELETE"):
                assert await status_of(admin, method, spelling, {}) == 401, spelling


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "127.0.0.1"},
        {"Host": "localhost:8001"},
        {"Host": f"{KEY}@admin"},
        {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1"},
        {"X-Original-URL": "/health", "X-Rewrite-URL": "/health", "X-HTTP-Method-Override": "GET"},
        {"Cookie": f"Authorization=Bearer {KEY}"},
        {"X-API-Key": KEY, "Proxy-Authorization": f"Bearer {KEY}"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer{KEY}"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"Authorization": f"Bearer {KEY} {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer rk-00000000-{'A' * 43}"},
    ],
)
async def test_no_header_stands_for_the_key(admin: Admin, headers: dict[str, str]) -> None:
    for path in (f"{API}/tenants", "/openapi.json", "/metrics", "/nowhere"):
        assert await status_of(admin, "GET", path, headers) == 401


async def test_bytes_and_doubles(admin: Admin) -> None:
    for values in ([b"Bearer \xff\xfe"], [f"Bearer {KEY}".encode()] * 2):
        headers = httpx.Headers([(b"Authorization", value) for value in values])
        request = httpx.Request("GET", f"http://admin{API}/tenants", headers=headers)
        check_error(await admin.client.send(request), 401)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_the_key_opens_everything(admin: Admin, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {KEY}"}
    for path in ("/openapi.json", "/docs", "/metrics", f"{API}/tenants", f"{API}/audit"):
        assert await status_of(admin, "GET", path, headers) == 200
    assert await status_of(admin, "GET", "/nowhere", headers) == 404
    assert await status_of(admin, "PATCH", f"{API}/tenants", headers) == 405
    # No page that loads scripts from elsewhere.
    assert await status_of(admin, "GET", "/redoc", headers) == 404


async def test_the_admin_key_is_no_tenants_key(admin: Admin) -> None:
    async with admin.as_tenant(KEY) as client:
        for path in ("/v1/models", f"{API}/tenants", "/metrics"):
            assert (await client.get(path)).status_code == 401


async def test_the_data_port_has_no_admin_routes(admin: Admin, tenant_key: str) -> None:
    async with admin.as_tenant(tenant_key) as client:
        assert (await client.get("/v1/models")).status_code == 200
        for path in {*all_paths(admin.app)} - {"/openapi.json", "/docs"}:
            for method in ("GET", "POST", "PUT", "DELETE"):
                answer = await client.request(method, path)
                assert answer.status_code in (404, 405), (method, path)


async def test_request_targets_that_only_a_socket_can_send(tmp_path: Path) -> None:
    async with listening(tmp_path) as admin:
        url = httpx.URL(admin.url)
        for target in (
            f"{API}/tenants",
            f"http://127.0.0.1:{url.port}{API}/tenants",
            f"http://user:{KEY}@127.0.0.1{API}/tenants",
            f"{API}/./tenants",
            f"/health/../{API}/tenants",
            "*",
        ):
            for host in ("127.0.0.1", "", f"127.0.0.1:{url.port}", "admin\tx"):
                reader, writer = await asyncio.open_connection(url.host, url.port)
                head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode())
                status = (await reader.readline()).split()[1]
                writer.close()
                # 400: uvicorn did not take it for HTTP.
                assert status in (b"401", b"400"), (target, host)
