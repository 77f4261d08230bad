"""Tenants do not see each other, and nobody sees anything without a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from server.admin import dashboard
from tests.unit.server.tenants import (
    ADMIN_KEY,
    BASE,
    TenantServer,
    all_paths,
    complete,
    tenant_serving,
)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TenantServer]:
    async with tenant_serving(tmp_path) as server:
        yield server


async def test_the_same_name_is_each_tenants_own(server: TenantServer) -> None:
    a, b = await server.tenant("a"), await server.tenant("b")
    ours, theirs = await server.adapter(1), await server.adapter(2)
    await server.put("a", {"style": ours})
    await server.put("b", {"style": theirs})
    answers = [(await c.post("/v1/completions", json=complete("style"))).json() for c in (a, b)]
    assert [answer["system_fingerprint"] for answer in answers] == [ours, theirs]
    assert answers[0]["choices"][0]["text"] != answers[1]["choices"][0]["text"]
    assert [request.tenant for request in server.engine.requests] == ["a", "b"]


async def test_what_is_anothers_is_what_is_not_there(server: TenantServer) -> None:
    a, b = await server.tenant("a"), await server.tenant("b", may_use_base=True)
    ours, theirs = await server.adapter(1), await server.adapter(2)
    await server.put("a", {"style": ours})
    a.headers["x-request-id"] = "the-same"

    async def seen(name: str) -> list[tuple[int, bytes, dict[str, str]]]:
        answers = [
            await a.post("/v1/completions", json=complete(name)),
            await a.post("/v1/completions", json=complete(name, stream=True)),
            await a.post("/v1/chat/completions", json={"model": name, "messages": []}),
            await a.post(
                "/v1/chat/completions",
                json={"model": name, "messages": [{"role": "user", "content": "x"}]},
            ),
            await a.get(f"/v1/models/{name}"),
        ]
        return [(x.status_code, x.content, dict(x.headers)) for x in answers]

    names = ("secret", theirs, "secret.v2", ours, "b/secret", "b%2Fsecret", BASE)
    before = {name: await seen(name) for name in names}
    await server.put("b", {"secret": theirs, "secret.v2": theirs})
    assert (await b.post("/v1/completions", json=complete("secret"))).status_code == 200
    for name in names:
        assert await seen(name) == before[name]
        assert {status for status, _, _ in before[name]} <= {404, 400}
    listed = (await a.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["style"]
    listed = (await b.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [BASE, "secret", "secret.v2"]


async def test_the_base_is_a_permission(server: TenantServer) -> None:
    client = await server.tenant("a")
    refused = await client.post("/v1/completions", json=complete(BASE))
    assert refused.status_code == 404
    await server.succeed("PUT", "/tenants/a/quota", json={"may_use_base": True})
    answer = (await client.post("/v1/completions", json=complete(BASE))).json()
    assert answer["system_fingerprint"] == f"base-{BASE}"
    await server.succeed("PUT", "/tenants/a/quota", json={"may_use_base": False})
    assert (await client.get(f"/v1/models/{BASE}")).status_code == 404


def tricks_for(path: str) -> list[str]:
    return [
        path,
        f"/{path}",
        f"{path}/",
        f"/health/..{path}",
        f"/health/%2e%2e{path}",
        f"/ready;{path}",
        f"/health?x={path}",
        f"/.{path}",
        path.upper(),
        f"{path}%00",
        f"/health#{path}",
    ]


@pytest.mark.parametrize("which", ["data", "admin"])
async def test_every_route_and_method_is_denied_without_the_right_key(
    server: TenantServer, which: str
) -> None:
    """Also with a revoked key and with the other port's, whatever the path looks like."""
    tenant = await server.tenant("a")
    revoked = await server.key("a")
    keys = (await server.admin.get("/admin/v1/tenants/a/keys")).json()["data"]
    newest = next(key for key in keys if revoked.startswith(key["prefix"]))
    await server.succeed("DELETE", f"/tenants/a/keys/{newest['id']}")
    own = tenant.headers["authorization"].removeprefix("Bearer ")
    wrong: list[dict[str, str]] = [
        {},
        {"Authorization": f"Bearer {revoked}"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer " + "rk-00000000-" + "A" * 43},
        {"Host": "127.0.0.1:8001", "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "admin"},
        {"X-Original-URL": "/health", "X-Rewrite-URL": "/health"},
        {"X-HTTP-Method-Override": "GET", "Authorization": "Basic YWRtaW46YWRtaW4="},
    ]
    if which == "data":
        app, other = server.apps.data, ADMIN_KEY
    else:
        app, other = server.apps.admin, own
    wrong.append({"Authorization": f"Bearer {other}"})
    client = await server.client(app)
    probes = {"/health", "/ping", "/ready"}
    open_paths = probes if which == "data" else dashboard.PATHS | {"/docs"}
    paths = [path for path in all_paths(app) if path not in open_paths]
    assert len(paths) > 3
    before = await server.admin.get("/admin/v1/audit")
    for path in {*paths, "/", "/metrics", "/docs", "/nothing"} - open_paths:
        for method in METHODS:
            for headers in wrong:
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path, headers, answer.text)
        for trick in tricks_for(path):
            answer = await client.request("GET", trick, headers=wrong[1])
            opened = httpx.URL(trick).path in open_paths
            assert answer.status_code == (200 if opened else 401), trick
            if opened and which == "data":  # the admin port's are files, the same for everybody
                assert answer.json() in ({"status": "ok"}, {"status": "ready"})
    assert (await server.admin.get("/admin/v1/audit")).content == before.content


async def test_two_keys_are_no_key(server: TenantServer) -> None:
    """A proxy might believe the one and the server the other."""
    tenant = await server.tenant("a")
    key = tenant.headers["authorization"]
    client = await server.client()
    answer = await client.get(
        "/v1/models", headers=[("Authorization", key), ("Authorization", "Bearer x")]
    )
    assert answer.status_code == 401


async def test_no_tenant_no_access(server: TenantServer) -> None:
    """A server does not become open because its last tenant is gone."""
    await server.tenant("a")
    await server.succeed("DELETE", "/tenants/a")
    client = await server.client()
    assert (await client.get("/v1/models")).status_code == 401
    assert (await client.post("/v1/completions", json=complete(BASE))).status_code == 401
